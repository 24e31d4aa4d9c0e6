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

FRACTIONS = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Of the scale that would just reach the largest weight; less helps no group of 64 normal weights."""


@dataclass(frozen=True, kw_only=True)
class Int4(Grouped):
    onnx_dtype: str = "INT4"

    def best_scales(self, block: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
        """1 for a column of zeros."""
        import torch

        largest = block.abs().amax(0)
        # In units of the largest weight: a square of 1e20 is infinite in fp32, one of 1e-30 nothing.
        unit = block / torch.where(largest == 0, torch.ones_like(largest), largest)
        errors = []
        for fraction in FRACTIONS:
            rounded = (unit * (7 / fraction)).round_().clamp_(-8, 7).mul_(fraction / 7).sub_(unit)
            errors.append(torch.linalg.vector_norm(rounded, dim=0))
        chosen = torch.tensor(FRACTIONS)[torch.stack(errors).argmin(0)]
        scale = (largest * (chosen / 7)).to(dtype).clamp(min=torch.finfo(dtype).tiny)
        return (torch.where(largest == 0, torch.ones_like(scale), scale)[None],)

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
