"""NF4 (NormalFloat: Dettmers et al. 2023, arXiv:2305.14314): 4-bit codes for the quantiles of a normal distribution, in
blocks of 64 weights that share their largest absolute value.

Bytes, codes and rounding are bitsandbytes': weights in PyTorch's order [out, in], two codes a byte with the first in
the high half, each block's largest absolute value in fp32 (its `absmax`, not quantized a second time).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import NumberFormat, OnnxForm, TensorRT, TensorSpec
from .nibbles import pack_nibbles, unpack_nibbles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALLEST = 1e-38
"""What a block of zeros is divided by."""


@dataclass(frozen=True, kw_only=True)
class NormalFloat(NumberFormat):
    bits: int = 4
    transposed: bool = True
    onnx_form: OnnxForm = OnnxForm.CODEBOOK

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("", "U8", inputs=2, transposed=True),
            TensorSpec("_absmax", "F32", inputs=self.group, transposed=True),
        )

    def scales(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
        """absmax, fp32 [out, in / 64]."""
        return (weight.float().t().unflatten(1, (-1, self.group)).abs().amax(2),)

    def step(self, *scales: Tensor) -> Tensor:
        (absmax,) = scales
        return absmax.t().clamp(min=SMALLEST)

    def units(self, weight: Tensor, *scales: Tensor) -> Tensor:
        """By the product with the reciprocal, in this order: what bitsandbytes rounds."""
        grouped = weight.float().unflatten(0, (-1, self.group))
        return (grouped * (1.0 / self.step(*scales))[:, None]).flatten(0, 1).clamp_(-1, 1)

    def indices(self, units: Tensor) -> Tensor:
        """Of the nearest code of each value in units of its block's absmax; the lower one from the middle."""
        import torch

        table = torch.tensor(self.codes)
        return torch.bucketize(units.contiguous(), (table[1:] + table[:-1]) / 2, out_int32=True)

    def nearest(self, units: Tensor, _offset: Tensor | None = None) -> Tensor:
        return self.code_values(units.device)[self.indices(units)]

    def pack(self, units: Tensor, *_scales: Tensor) -> Tensor:
        """uint8 [out, in / 2]."""
        import torch

        return pack_nibbles(self.indices(units.t()).to(torch.uint8), high_first=True)

    def dequantize(self, values: Tensor, *scales: Tensor) -> Tensor:
        """In fp32."""
        (absmax,) = scales
        numbers = self.code_values(values.device)[unpack_nibbles(values, high_first=True).int()]
        return (numbers.unflatten(1, (-1, self.group)) * absmax[..., None]).flatten(1).t()

    def kernel_operands(self, *scales: Tensor) -> tuple[Tensor, Tensor, None]:
        (absmax,) = scales
        return self.code_values(absmax.device), absmax, None


NF4 = NormalFloat(
    name="nf4",
    flag_help="as bitsandbytes' NF4, for its kernels; elsewhere they are unpacked first",
    group=64,
    # The paper's table (appendix E) in fp32.
    codes=(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    tensorrt=TensorRT.UNPACKED,
)
