"""INT4 weights: integers from -8 to 7 in groups of input rows, each group and output channel with a scale of its own.

The layout is that of ONNX's DequantizeLinear with axis 0 and block_size: two values a byte along a row, the first in
the low half. Scales are searched for the least squared error (as "MSE clipping" in most toolkits) rather than taken
from the largest weight, which a normal distribution rewards with a fifth less error at four bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
"""Input rows that share a scale: what TensorRT, MatMulNBits and SVDQuant use."""

FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of the scale that would just reach the largest weight; below 0.7 no group of a normal distribution gains."""

COLUMNS = 2048
"""Output channels that are worked on at once; bounds the memory."""


def fits(shape: tuple[int, ...], group: int = GROUP) -> bool:
    """Whether a weight [in, out] can be stored so."""
    return len(shape) == 2 and shape[0] % group == 0 and shape[1] % 2 == 0


def quantize(weight: Tensor, scale_dtype: torch.dtype, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """`weight` [in, out] as packed INT4, uint8 [in, out / 2], and its scales [in / group, out].

    The integers are found with the scales as they are stored, so rounding these to 16 bits costs nothing more.

    Raises:
        ValueError: the input rows are no multiple of `group`, or the output channels are odd.
    """
    if not fits(tuple(weight.shape), group):
        raise ValueError(
            f"a weight of {list(weight.shape)} has no whole groups of {group}, or an odd number of columns"
        )
    packed, scales = [], []
    for columns in weight.split(COLUMNS, dim=1):
        values, scale = quantize_groups(columns.float(), scale_dtype, group)
        packed.append(pack(values))
        scales.append(scale)
    return torch.cat(packed, dim=1), torch.cat(scales, dim=1)


def quantize_groups(weight: Tensor, scale_dtype: torch.dtype, group: int) -> tuple[Tensor, Tensor]:
    """int8 values [in, out] and scales [in / group, out] of fp32 weights."""
    groups = weight.unflatten(0, (-1, group))
    largest = groups.abs().amax(1)
    unit = torch.where(largest == 0, torch.ones_like(largest), largest)[:, None]
    best_scale = torch.ones_like(largest)
    best_error = torch.full_like(largest, torch.inf)
    tiny = torch.finfo(scale_dtype).tiny
    for fraction in FRACTIONS:
        scale = (largest * (fraction / 7)).to(scale_dtype).float().clamp(min=tiny)
        # In units of the largest weight: a square of 1e20 is infinite in fp32, one of 1e-30 nothing.
        error = ((rounded(groups, scale) * scale[:, None] - groups) / unit).square().sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    best_scale = torch.where(largest == 0, torch.ones_like(best_scale), best_scale)
    values = rounded(groups, best_scale).to(torch.int8)
    return values.flatten(0, 1), best_scale.to(scale_dtype)


def rounded(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale[:, None]).round_().clamp_(-8, 7)


def pack(values: Tensor) -> Tensor:
    """int8 [rows, columns] from -8 to 7 → uint8 [rows, columns / 2], the first of two in the low half."""
    nibbles = values.view(torch.uint8) & 15
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: int8 [rows, columns]."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).view(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def dequantize(packed: Tensor, scales: Tensor) -> Tensor:
    """What the graph's DequantizeLinear computes: [in, out] in the scales' format."""
    values = unpack(packed).to(scales.dtype)
    return values * scales.repeat_interleave(values.shape[0] // scales.shape[0], dim=0)
