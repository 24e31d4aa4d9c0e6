"""UINT4 weights: integers from 0 to 15 in groups of input rows, each group and output channel with a scale and a zero
point of its own (asymmetric INT4).

All sixteen values are used where a group's weights lie to one side, for a sixteenth of a bit more per weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import TensorRT, TensorSpec
from .grouped import Grouped
from .nibbles import pack_nibbles, unpack_nibbles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Of the range from the smallest to the largest weight."""


@dataclass(frozen=True, kw_only=True)
class UInt4(Grouped):
    onnx_dtype: str = "UINT4"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        zeros = TensorSpec("_zero_point", "U8", self.group, outputs=2, onnx_dtype=self.onnx_dtype)
        return *super().tensors, zeros

    def best_scales(self, block: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scales, and packed zero points; 1 and 0 for a column of zeros."""
        import torch

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
            best_scale, best_zero = (
                torch.where(better, scale, best_scale),
                torch.where(better, zero, best_zero),
            )
        empty = high == low
        scale = torch.where(empty, torch.ones_like(best_scale), best_scale)[None]
        zero = torch.where(empty, torch.zeros_like(best_zero), best_zero)[None]
        return scale, pack_nibbles(zero.to(torch.uint8))

    def offset(self, *scales: Tensor) -> Tensor:
        _, zero_point = scales
        return unpack_nibbles(zero_point).float()

    def nearest(self, units: Tensor, offset: Tensor | None = None) -> Tensor:
        if offset is None:
            raise ValueError("rounding to UINT4 needs its zero points")
        return (units.round() + offset).clamp_(0, 15) - offset

    def pack(self, units: Tensor, *scales: Tensor) -> Tensor:
        """uint8 [in, out / 2]."""
        import torch

        zero = self.offset(*scales)
        grouped = units.unflatten(0, (len(zero), -1)).round() + zero[:, None]
        return pack_nibbles(grouped.clamp_(0, 15).to(torch.uint8).flatten(0, 1))

    def dequantize(self, values: Tensor, *scales: Tensor) -> Tensor:
        """In the scales' dtype."""
        scale, zero_point = scales
        grouped = unpack_nibbles(values).float().unflatten(0, (len(scale), -1))
        integers = grouped - self.offset(scale, zero_point)[:, None]
        return (integers.to(scale.dtype) * scale[:, None]).flatten(0, 1)

    def kernel_operands(self, *scales: Tensor) -> tuple[None, Tensor, Tensor]:
        scale, zero_point = scales
        return None, scale, zero_point


UINT4 = UInt4(name="uint4", tensorrt=TensorRT.REFUSED)
