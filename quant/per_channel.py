"""One scale for each output channel: what `fp8` and `int8` have in common, as `formats` asks for it."""

from __future__ import annotations

import torch
from torch import Tensor


def fits(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2


def layout(shape: tuple[int, int], values: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """`values` is what safetensors calls the format of the values."""
    return [("", values, shape), ("_scale", "wide", shape[1:])]


def scales(weight: Tensor, dtype: torch.dtype, limit: float) -> tuple[Tensor]:
    """amax / limit of every column of `weight` [in, out], as `dtype` [out]; 1 for columns of zeros.

    Rounded up to a normal number of `dtype` where it would be less: a scale that underflows would turn
    weights to NaN.
    """
    largest = weight.abs().amax(dim=0).float()
    scale = (largest / limit).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    return (torch.where(largest == 0, torch.ones_like(scale), scale),)


def step(scale: Tensor) -> Tensor:
    return scale.float()[None]


def offset(_scale: Tensor) -> None:
    return None


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """What the graph's DequantizeLinear computes, in the scale's format."""
    return values.to(scale.dtype) * scale
