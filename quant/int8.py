"""INT8 weights: integers from -127 to 127 with one scale per output channel.

At eight bits the plain scale, which just reaches the largest weight, is within 2 % of the best one for normal weights.
-128 is left out, so that a weight and its negative are stored alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import per_channel
from .per_channel import dequantize, fits, offset, step  # noqa: F401 (a format has them all)

INT8_MAX = 127


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    return per_channel.layout(shape, "I8")


def scales(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
    return per_channel.scales(weight, dtype, INT8_MAX)


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return units.round().clamp_(-INT8_MAX, INT8_MAX)


def pack(units: Tensor, *_scales: Tensor) -> Tensor:
    return units.to(torch.int8)


def quantize(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`weight` [in, out] as int8 and its scales [out]: weight ≈ values * scales.

    The division is by the scale as it is stored, so rounding it to 16 bits costs range and not accuracy.
    """
    (scale,) = scales(weight, scale_dtype)
    return pack(nearest(weight.float() / scale.float())), scale
