"""The order of V's keys in quantized attention: that in which a thread holds the columns of Q K^T."""

from __future__ import annotations

from torch import Tensor

from .launch import jit, tl


def interleave(x: Tensor) -> Tensor:
    """Reorders the last axis within every 16, so that 2t, 2t + 1, 2t + 8 and 2t + 9 become neighbours for t = 0 to 3.

    One thread holds these columns of Q K^T, and 8-bit tensor cores take four neighbouring columns of P from it. With
    V's keys in this order, P goes from one product to the next without a shuffle (FlashAttention-3, Shah et al. 2024,
    also permutes V). Applying it twice is not the identity: see `deinterleave`.
    """
    return x.unflatten(-1, (-1, 2, 4, 2)).transpose(-3, -2).flatten(-4)


def deinterleave(x: Tensor) -> Tensor:
    """The inverse of `interleave`."""
    return x.unflatten(-1, (-1, 4, 2, 2)).transpose(-3, -2).flatten(-4)


@jit()
def interleave_tile(x):  # type: ignore[no-untyped-def]
    """`interleave` of a tile's columns."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    parts = tl.permute(tl.reshape(x, [ROWS, COLUMNS // 16, 2, 4, 2]), (0, 1, 3, 2, 4))
    return tl.reshape(parts, [ROWS, COLUMNS])
