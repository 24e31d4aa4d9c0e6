"""NF4 (NormalFloat: Dettmers et al. 2023, arXiv:2305.14314): 4-bit codes for the quantiles of a normal distribution, in
blocks of 64 weights that share their largest absolute value.

Bytes, codes and rounding are bitsandbytes': weights in PyTorch's order [out, in], two codes a byte with the first in
the high half, each block's largest absolute value in fp32 (its `absmax`, not quantized a second time).
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64

CODES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The paper's table (appendix E) in fp32."""

SMALLEST = 1e-38
"""What a block of zeros is divided by."""


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a weight [in, out] can be stored so: no block reaches from one output channel into the next."""
    return len(shape) == 2 and shape[0] % GROUP == 0


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    rows, columns = shape
    return [("", "U8", (columns, rows // 2)), ("_absmax", "F32", (columns, rows // GROUP))]


def scales(weight: Tensor, _dtype: torch.dtype) -> tuple[Tensor]:
    """absmax, fp32 [out, in / 64]."""
    return (weight.float().t().unflatten(1, (-1, GROUP)).abs().amax(2),)


def step(absmax: Tensor) -> Tensor:
    return absmax.t().clamp(min=SMALLEST)


def offset(_absmax: Tensor) -> None:
    return None


def codes(units: Tensor) -> Tensor:
    """Index of the nearest code of each value in units of its block's absmax; the lower one from the middle."""
    table = torch.tensor(CODES)
    return torch.bucketize(units.contiguous(), (table[1:] + table[:-1]) / 2)


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return torch.tensor(CODES)[codes(units)]


def pack(units: Tensor, *_scales: Tensor) -> Tensor:
    """uint8 [out, in / 2] of values [in, out]."""
    indices = codes(units.t()).to(torch.uint8)
    return (indices[:, 0::2] << 4) | indices[:, 1::2]


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`weight` [in, out] as codes, uint8 [out, in / 2], and absmax, fp32 [out, in / 64].

    Raises:
        ValueError: the input rows are no multiple of 64.
    """
    if not fits(tuple(weight.shape)):
        raise ValueError(f"a weight of {list(weight.shape)} has no whole blocks of {GROUP} inputs")
    (absmax,) = scales(weight, dtype)
    # The product with the reciprocal, in this order, is what bitsandbytes rounds.
    units = weight.float() * (1.0 / step(absmax)).repeat_interleave(GROUP, dim=0)
    return pack(units.clamp(-1, 1)), absmax


def dequantize(packed: Tensor, absmax: Tensor) -> Tensor:
    """What the graph computes: fp32 [in, out]."""
    indices = torch.stack((packed >> 4, packed & 15), dim=-1).flatten(-2)
    return (
        torch.tensor(CODES, device=packed.device)[indices.int()] * absmax.repeat_interleave(GROUP, dim=1)
    ).t()
