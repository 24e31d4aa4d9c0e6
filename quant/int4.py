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

FRACTIONS = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Of the scale that would just reach the largest weight; less helps no group of 64 normal weights."""

BLOCK = 1 << 19
"""Weights that are worked on at once: 2 MB in fp32, so that the search's many passes stay in a core's cache."""


def fits(shape: tuple[int, ...], group: int = GROUP) -> bool:
    """Whether a weight [in, out] can be stored so."""
    return len(shape) == 2 and shape[0] % group == 0 and shape[1] % 2 == 0


def check(weight: Tensor, group: int = GROUP) -> None:
    """Raises ValueError for a weight that does not fit."""
    if not fits(tuple(weight.shape), group):
        raise ValueError(
            f"a weight of {list(weight.shape)} has no whole groups of {group}, or an odd number of columns"
        )


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    rows, columns = shape
    return [("", "U8", (rows, columns // 2)), ("_scale", "wide", (rows // GROUP, columns))]


def step(scale: Tensor) -> Tensor:
    return scale.float()


def offset(_scale: Tensor) -> None:
    return None


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return units.round().clamp_(-8, 7)


def quantize(weight: Tensor, scale_dtype: torch.dtype, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """`weight` [in, out] as packed INT4, uint8 [in, out / 2], and its scales [in / group, out].

    The integers are found with the scales as they are stored, so rounding these to 16 bits costs nothing more.

    Raises:
        ValueError: the input rows are no multiple of `group`, or the output channels are odd.
    """
    check(weight, group)
    rows, columns = weight.shape
    packed = torch.empty(rows, columns // 2, dtype=torch.uint8)
    found = torch.empty(rows // group, columns, dtype=scale_dtype)
    width = max(2, BLOCK // group // 2 * 2)
    for row in range(0, rows, group):
        for column in range(0, columns, width):
            block = weight[row : row + group, column : column + width].float()
            scale = best_scale(block, scale_dtype)
            values = (block / scale.float()).round_().clamp_(-8, 7).to(torch.int8)
            packed[row : row + group, column // 2 : (column + width) // 2] = pack(values)
            found[row // group, column : column + width] = scale
    return packed, found


def scales(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
    """The scales alone, [in / 64, out]."""
    return (torch.stack([best_scale(rows.float(), dtype) for rows in weight.split(GROUP)]),)


def best_scale(block: Tensor, scale_dtype: torch.dtype) -> Tensor:
    """The scale of each column of one group, fp32 [group, columns], as `scale_dtype` [columns]; 1 for zeros."""
    largest = block.abs().amax(0)
    # In units of the largest weight: a square of 1e20 is infinite in fp32, one of 1e-30 nothing.
    unit = block / torch.where(largest == 0, torch.ones_like(largest), largest)
    errors = []
    for fraction in FRACTIONS:
        rounded = (unit * (7 / fraction)).round_().clamp_(-8, 7).mul_(fraction / 7).sub_(unit)
        errors.append(torch.linalg.vector_norm(rounded, dim=0))
    chosen = torch.tensor(FRACTIONS)[torch.stack(errors).argmin(0)]
    scale = (largest * (chosen / 7)).to(scale_dtype).clamp(min=torch.finfo(scale_dtype).tiny)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def pack(values: Tensor, *_scales: Tensor) -> Tensor:
    """Integers [rows, columns] from -8 to 7 → uint8 [rows, columns / 2], the first of two in the low half."""
    nibbles = values.to(torch.int8).view(torch.uint8) & 15
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: int8 [rows, columns]."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).view(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def dequantize(packed: Tensor, scales: Tensor) -> Tensor:
    """What the graph's DequantizeLinear computes: [in, out] in the scales' format."""
    values = unpack(packed).to(scales.dtype)
    return values * scales.repeat_interleave(values.shape[0] // scales.shape[0], dim=0)
