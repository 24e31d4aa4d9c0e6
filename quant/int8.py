"""INT8 weights: integers from -127 to 127 with one scale per output channel.

At eight bits the plain scale, which just reaches the largest weight, is within 2 % of the best one for normal weights.
-128 is left out, so that a weight and its negative are stored alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127


def channel_scales(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """amax / 127 of every column of `weight` [in, out], as `dtype` [out]; 1 for columns of zeros."""
    largest = weight.abs().amax(dim=0).float()
    scale = (largest / INT8_MAX).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def fits(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [("", "I8", shape), ("_scale", "wide", shape[1:])]


def scales(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
    return (channel_scales(weight, dtype),)


def step(scale: Tensor) -> Tensor:
    return scale.float()[None]


def offset(_scale: Tensor) -> None:
    return None


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return units.round().clamp_(-INT8_MAX, INT8_MAX)


def pack(units: Tensor, *_scales: Tensor) -> Tensor:
    return units.to(torch.int8)


def quantize(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`weight` [in, out] as int8 and its scales [out]: weight ≈ values * scales.

    The division is by the scale as it is stored, so rounding it to 16 bits costs range and not accuracy.
    """
    scale = channel_scales(weight, scale_dtype)
    return pack(nearest(weight.float() / scale.float())), scale


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """What the graph's DequantizeLinear computes, in the scale's format."""
    return values.to(scale.dtype) * scale
