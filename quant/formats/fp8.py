"""FP8: E4M3 weights, one byte each, 4 exponent and 3 mantissa bits, with one scale per output channel.

OCP 8-bit Floating Point Specification (2023), the `e4m3fn` of PyTorch, ml_dtypes and ONNX: no infinity, two NaNs.
"""

from __future__ import annotations

from .base import InputRounding
from .per_channel import PerChannel

E4M3_MAX = 448.0

FP8 = PerChannel(
    name="fp8",
    flag_help="as E4M3 with a scale per output channel",
    dtype="F8_E4M3",
    largest=E4M3_MAX,
    input_rounding=InputRounding.STATIC,
    min_capability=89,
    kernel_inputs=("fp8",),
)
