"""Asymmetric INT4: integers from 0 to 15 in groups of input rows, each group and output channel with a scale and a
zero point of its own.

The layout is that of ONNX's DequantizeLinear with axis 0, block_size and a UINT4 zero point. All sixteen values are
used where a group's weights lie to one side, for a sixteenth of a bit more per weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import int4
from .int4 import BLOCK, GROUP, fits

__all__ = ["dequantize", "fits", "layout", "nearest", "offset", "pack", "quantize", "scales", "step"]

FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Of the range from the smallest to the largest weight."""


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    """As `formats.NumberFormat`."""
    rows, columns = shape
    groups = rows // GROUP
    return [
        ("", "U8", (rows, columns // 2)),
        ("_scale", "wide", (groups, columns)),
        ("_zero_point", "U8", (groups, columns // 2)),
    ]


def scales(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales [groups, out] as `dtype`, and zero points, packed uint8 [groups, out / 2]."""
    steps, zeros = [], []
    for rows in weight.split(GROUP):
        found = [best_range(part.float(), dtype) for part in rows.split(max(2, BLOCK // GROUP), dim=1)]
        steps.append(torch.cat([scale for scale, _ in found]))
        zeros.append(torch.cat([zero for _, zero in found]))
    return torch.stack(steps), pack(torch.stack(zeros) - 8)


def best_range(block: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The scale and the zero point of each column of one group, with the least squared error of those tried."""
    low, high = block.amin(0).clamp(max=0), block.amax(0).clamp(min=0)  # zero stays exact
    tiny = torch.finfo(dtype).tiny
    best_error = torch.full_like(low, float("inf"))
    best_scale, best_zero = torch.ones_like(low).to(dtype), torch.zeros_like(low)
    for fraction in FRACTIONS:
        scale = ((high - low) * (fraction / 15)).to(dtype).clamp(min=tiny)
        zero = (-low * fraction / scale.float()).round().clamp(0, 15)
        rounded = ((block / scale.float()).round() + zero).clamp(0, 15) - zero
        # In units of the range: a square of 1e20 is infinite in fp32.
        unit = (high - low).clamp(min=tiny)
        error = ((rounded * scale.float() - block) / unit).square().sum(0)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    empty = high == low
    one = torch.ones_like(best_scale)
    return torch.where(empty, one, best_scale), torch.where(empty, torch.zeros_like(best_zero), best_zero)


def step(scale: Tensor, _zero_point: Tensor) -> Tensor:
    return scale.float()


def offset(_scale: Tensor, zero_point: Tensor) -> Tensor:
    return unpack(zero_point)


def nearest(units: Tensor, offset: Tensor | None) -> Tensor:
    if offset is None:
        raise ValueError("rounding to UINT4 needs its zero points")
    return (units.round() + offset).clamp_(0, 15) - offset


def pack(units: Tensor, *scales: Tensor) -> Tensor:
    """Values of `nearest`, with scales and zero points, or without them integers less 8; uint8 [rows, columns / 2]."""
    if scales:
        zero = offset(*scales)
        units = units + zero.repeat_interleave(units.shape[0] // len(zero), dim=0) - 8
    nibbles = (units + 8).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """fp32 [rows, columns], 0 to 15."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).float()


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`weight` [in, out] as packed values, scales and zero points.

    Raises:
        ValueError: the input rows are no multiple of the group, or the output channels are odd.
    """
    int4.check(weight)
    found = scales(weight, dtype)
    repeats = GROUP
    units = weight.float() / step(*found).repeat_interleave(repeats, dim=0)
    return pack(nearest(units, offset(*found).repeat_interleave(repeats, dim=0)), *found), *found


def dequantize(packed: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """What the graph's DequantizeLinear computes: [in, out] in the scales' format."""
    values, zeros = unpack(packed), unpack(zero_point)
    repeats = len(values) // len(zeros)
    return (values - zeros.repeat_interleave(repeats, dim=0)).to(scale.dtype) * scale.repeat_interleave(
        repeats, dim=0
    )
