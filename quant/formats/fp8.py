"""FP8: E4M3 weights, one byte each, 4 exponent and 3 mantissa bits, with one scale per output channel.

OCP 8-bit Floating Point Specification (2023), the `e4m3fn` of PyTorch, ml_dtypes and ONNX: no infinity, two NaNs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import InputRounding
from .per_channel import PerChannel

if TYPE_CHECKING:
    from torch import Tensor

E4M3_MAX = 448.0

E4M3_SMALLEST = 2.0**-9
"""Spacing of E4M3 below its smallest normal number, 2^-6."""


def e4m3_spacing(units: Tensor) -> Tensor:
    """Of E4M3 around positive numbers."""
    return (units.log2().floor() - 3).exp2().clamp(min=E4M3_SMALLEST)


FP8 = PerChannel(
    name="fp8",
    flag_help="as E4M3 with a scale per output channel",
    dtype="F8_E4M3",
    largest=E4M3_MAX,
    spacing=e4m3_spacing,
    input_roundings=(InputRounding.STATIC,),
    min_capability=89,
    kernel_inputs=("fp8",),
)
