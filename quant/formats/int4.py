"""INT4 weights: integers from -8 to 7, a two's complement of four bits, in groups of input rows with a scale each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import INT4_GEMM, TensorRT
from .grouped import Grouped
from .nibbles import pack_nibbles, unpack_nibbles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FRACTIONS = (1.0, 0.94, 0.88, 0.82)
"""Of the scale that would just reach the largest weight. Each is then fitted to the integers that it gives: 0.04 dB
better on normal and on heavy-tailed weights than one more of them, 0.76, without the fit."""

EXACT = 1e-6
"""A fitted scale that is so close to the one it started from is that one: what INT4 can hold stays exact."""


@dataclass(frozen=True, kw_only=True)
class Int4(Grouped):
    onnx_dtype: str = "INT4"

    def best_scales(self, block: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
        """1 for a column of zeros."""
        import torch

        largest = block.abs().amax(0)
        # In units of the largest weight: a square of 1e20 is infinite in fp32, one of 1e-30 nothing.
        unit = block / torch.where(largest == 0, torch.ones_like(largest), largest)
        gains, fitted = [], []
        for fraction in FRACTIONS:
            # Of the scales for these integers q, <unit, q> / <q, q> leaves the least, |unit|^2 - <unit, q>^2 / <q, q>.
            # Sums of products, since a norm along the first dimension takes PyTorch 30 times as long.
            integers = (unit * (7 / fraction)).round_().clamp_(-8, 7)
            size = integers.square().sum(0).clamp_(min=1)
            product = integers.mul_(unit).sum(0)
            scale = product / size
            gains.append(product * scale)
            close = (scale * (7 / fraction) - 1).abs() < EXACT
            fitted.append(torch.where(close, fraction / 7, scale))
        chosen = torch.stack(gains).argmax(0, keepdim=True)
        scale = (largest * torch.stack(fitted).gather(0, chosen)).to(dtype).clamp(min=torch.finfo(dtype).tiny)
        return (torch.where(largest == 0, torch.ones_like(scale), scale),)

    def nearest(self, units: Tensor, _offset: Tensor | None = None) -> Tensor:
        return units.round().clamp_(-8, 7)

    def pack(self, units: Tensor, *_scales: Tensor) -> Tensor:
        """uint8 [in, out / 2]."""
        import torch

        return pack_nibbles(self.nearest(units).to(torch.int8).view(torch.uint8) & 15)

    def integers(self, packed: Tensor) -> Tensor:
        """The inverse of `pack`: int8 [in, out]."""
        import torch

        # The sign's bit shifted to the top, and back with copies of it.
        return (unpack_nibbles(packed) << 4).view(torch.int8) >> 4

    def dequantize(self, values: Tensor, *scales: Tensor) -> Tensor:
        """In the scales' dtype."""
        (scale,) = scales
        integers = self.integers(values).to(scale.dtype)
        return (integers.unflatten(0, (len(scale), -1)) * scale[:, None]).flatten(0, 1)


INT4 = Int4(
    name="int4",
    flag_help="as INT4 with a scale per output channel and 64 inputs",
    has_branch=True,
    runs_on_cpu=True,
    unpacked_inputs=("fp8", "int8"),
    tensorrt=TensorRT.FUSED_CONSTANTS,
    tensorrt_capability=80,
    kernel=INT4_GEMM,
    kernel_inputs=("fp8",),
)
