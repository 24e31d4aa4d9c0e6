"""Two codes of four bits in a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pack_nibbles(codes: Tensor, high_first: bool = False) -> Tensor:
    """uint8 codes [rows, columns] from 0 to 15 → uint8 [rows, columns / 2], the first of two in the low half, or the
    high one."""
    first, second = codes[:, 0::2], codes[:, 1::2]
    return (first << 4) | second if high_first else first | (second << 4)


def unpack_nibbles(packed: Tensor, high_first: bool = False) -> Tensor:
    """The inverse of `pack_nibbles`: uint8 [rows, columns]."""
    import torch

    low, high = packed & 15, packed >> 4
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(-2)
