"""Weights of four bits: two a byte, each one of 16 values."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 20
"""Bytes that are looked up at once; the temporaries take 12 MB."""


def look_up(packed: Tensor, values: Tensor) -> Tensor:
    """uint8 with two weights a byte, the first in the high half, and fp32 [16] → fp32 [2 · bytes]."""
    import torch

    codes = torch.arange(256)
    pairs = torch.stack((values[codes >> 4], values[codes & 15]), dim=1)
    result = torch.empty(packed.numel(), 2)
    for source, target in zip(packed.reshape(-1).split(PIECE), result.split(PIECE), strict=True):
        torch.index_select(pairs, 0, source.int(), out=target)
    return result.reshape(-1)
