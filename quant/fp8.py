"""E4M3 weights: one byte each, 4 exponent and 3 mantissa bits, largest value 448, with one scale per output
channel.

OCP 8-bit Floating Point Specification (2023), the `e4m3fn` of PyTorch, ml_dtypes and ONNX: no infinity, two
NaNs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import per_channel
from .per_channel import dequantize, fits, offset, step  # noqa: F401 (a format has them all)

E4M3_MAX = 448.0


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    return per_channel.layout(shape, "F8_E4M3")


def scales(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
    return per_channel.scales(weight, dtype, E4M3_MAX)


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return pack(units).float()


def pack(units: Tensor, *_scales: Tensor) -> Tensor:
    return units.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`weight` [in, out] as E4M3 and its scales [out]: weight ≈ values * scales.

    The division is by the scale as it is stored, so rounding it to 16 bits costs range and not accuracy.
    """
    (scale,) = scales(weight, scale_dtype)
    return pack(weight.float() / scale.float()), scale
