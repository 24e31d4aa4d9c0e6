"""NVFP4: E2M1 values (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) in blocks of 16 input rows, each block with an
E4M3 scale, those with one fp32 scale for the whole weight.

The layout is that of ONNX's FLOAT4E2M1 behind two DequantizeLinear: two values a byte along a row, the first in the
low half; the block scales are values of the first, the second takes its outputs as scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fp8 import E4M3_MAX

GROUP = 16

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three bits below the sign stand for."""

LARGEST = 6.0

REACHES = (6.0, 5.0, 4.0)
"""Values that a block's largest weight may become. Most blocks do best with 6; where the others lie around two thirds
of the largest, between 4 and 6, the finer grid below 4 is worth more (Four Over Six: Cook et al. 2025)."""

TIES_UP = (False, True, False, True, False, True, False)
"""Between which neighbours the middle goes up: to the even code, as IEEE 754 rounds."""


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a weight [in, out] can be stored so."""
    return len(shape) == 2 and shape[0] % GROUP == 0 and shape[1] % 2 == 0


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    rows, columns = shape
    return [
        ("", "U8", (rows, columns // 2)),
        ("_scale", "F8_E4M3", (rows // GROUP, columns)),
        ("_global_scale", "F32", ()),
    ]


def scales(weight: Tensor, _dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Block scales, E4M3 [in / 16, out], and the weight's, fp32 []."""
    blocks = weight.float().unflatten(0, (-1, GROUP))
    largest = blocks.abs().amax(1)
    top = largest.max()
    # The block with the largest weight, drawn down to 4, must still have a scale within E4M3.
    whole = torch.where(top == 0, torch.ones_like(top), top / (E4M3_MAX * min(REACHES)))
    whole = whole.clamp(min=torch.finfo(torch.float32).tiny)
    unit = torch.where(largest == 0, torch.ones_like(largest), largest)
    best_error = torch.full_like(largest, float("inf"))
    best = torch.zeros_like(largest)
    for reach in REACHES:
        scale = (largest / (reach * whole)).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()
        step = torch.where(scale == 0, torch.ones_like(scale), scale * whole)[:, None]
        rounded = nearest(blocks / step) * torch.where(scale == 0, 0.0, scale * whole)[:, None]
        error = ((rounded - blocks) / unit[:, None]).square().sum(1)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best.to(torch.float8_e4m3fn), whole


def step(scale: Tensor, global_scale: Tensor) -> Tensor:
    steps = scale.float() * global_scale
    return torch.where(steps == 0, torch.ones_like(steps), steps)


def offset(_scale: Tensor, _global_scale: Tensor) -> None:
    return None


def codes(units: Tensor) -> Tensor:
    """The four bits of the nearest E2M1 value, uint8; beyond 6 it saturates."""
    table = torch.tensor(VALUES)
    middles = (table[1:] + table[:-1]) / 2
    below = torch.nextafter(middles, torch.zeros_like(middles))
    bounds = torch.where(torch.tensor(TIES_UP), below, middles)
    magnitude = torch.bucketize(units.abs().contiguous(), bounds)
    return (magnitude + 8 * (torch.signbit(units) & (magnitude > 0))).to(torch.uint8)


def decode(codes: Tensor) -> Tensor:
    """fp32 values of four-bit codes."""
    table = torch.tensor(VALUES, device=codes.device)
    return torch.cat((table, -table))[codes.int()]


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return decode(codes(units))


def pack(units: Tensor, *_scales: Tensor) -> Tensor:
    nibbles = codes(units)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`weight` [in, out] as packed E2M1, uint8 [in, out / 2], block scales and the weight's scale.

    Raises:
        ValueError: the input rows are no multiple of 16, or the output channels are odd.
    """
    if not fits(tuple(weight.shape)):
        raise ValueError(
            f"a weight of {list(weight.shape)} has no whole blocks of {GROUP}, or an odd number of columns"
        )
    found = scales(weight, dtype)
    return pack(weight.float() / step(*found).repeat_interleave(GROUP, dim=0)), *found


def dequantize(packed: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """What the graph's two DequantizeLinear compute: fp32 [in, out]."""
    values = decode(torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2))
    return values * (scale.float() * global_scale).repeat_interleave(GROUP, dim=0)
