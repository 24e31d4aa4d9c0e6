"""Eight bits a weight with one scale for each output channel: what `fp8` and `int8` have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import COMPUTE, SCALED_GEMM, NumberFormat, OnnxForm, TensorRT, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PerChannel(NumberFormat):
    """`dtype` of the values, as safetensors names it; `largest` of them, whose negative is the smallest; `spacing` of
    the values around given ones, in units of the step."""

    dtype: str
    largest: float
    spacing: Callable[[Tensor], Tensor]
    bits: int = 8
    onnx_form: OnnxForm = OnnxForm.PER_CHANNEL
    tensorrt: TensorRT = TensorRT.FUSED
    kernel: str = SCALED_GEMM

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return TensorSpec("", self.dtype), TensorSpec("_scale", COMPUTE, inputs=0)

    def scales(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
        """amax / largest of every column of `weight` [in, out], as `dtype` [out]; 1 for columns of zeros.

        Rounded up to a normal number of `dtype` where it would be less: a scale that underflows would turn weights to
        NaN.
        """
        import torch

        amax = weight.abs().amax(dim=0).float()
        scale = (amax / self.largest).to(dtype).clamp(min=torch.finfo(dtype).tiny)
        return (torch.where(amax == 0, torch.ones_like(scale), scale),)

    def step(self, *scales: Tensor) -> Tensor:
        return scales[0].float()[None]

    def nearest(self, units: Tensor, _offset: Tensor | None = None) -> Tensor:
        return self.pack(units).float()

    def pack(self, units: Tensor, *_scales: Tensor) -> Tensor:
        from ...model.dtypes import TORCH_DTYPES

        dtype = TORCH_DTYPES[self.dtype]
        if dtype.is_floating_point:  # where a cast rounds to the nearest; to an integer it truncates
            return units.clamp(-self.largest, self.largest).to(dtype)
        return units.round().clamp_(-self.largest, self.largest).to(dtype)

    def dequantize(self, values: Tensor, *scales: Tensor) -> Tensor:
        """In the scale's dtype."""
        (scale,) = scales
        return values.to(scale.dtype) * scale
