"""NVFP4: E2M1 values (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) in blocks of 16 input rows, each block with an
E4M3 scale, those with one fp32 scale for the whole weight.

The layout is that of ONNX's FLOAT4E2M1 behind two DequantizeLinear: two values a byte along a row, the first in the
low half; the block scales are values of the first, the second takes its outputs as scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import BLOCK_GEMM, InputRounding, NumberFormat, OnnxForm, TensorRT, TensorSpec
from .fp8 import E4M3_MAX, E4M3_SMALLEST
from .nibbles import pack_nibbles, unpack_nibbles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three bits below the sign stand for."""

REACHES = (6.0, 5.0, 4.0)
"""Values that a block's largest weight may become. Most blocks do best with 6; where the others lie around two thirds
of the largest, between 4 and 6, the finer grid below 4 is worth more (Four Over Six: Cook et al. 2025)."""

TIES_UP = (False, True, False, True, False, True, False)
"""Between which neighbours the middle goes up: to the even code, as IEEE 754 rounds."""


@dataclass(frozen=True, kw_only=True)
class BlockedE2M1(NumberFormat):
    bits: int = 4
    codes: tuple[float, ...] = (*VALUES, *(-value for value in VALUES))
    onnx_form: OnnxForm = OnnxForm.TWO_LEVEL

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("", "U8", outputs=2, onnx_dtype="FLOAT4E2M1"),
            TensorSpec("_scale", "F8_E4M3", inputs=self.group),
            TensorSpec("_global_scale", "F32", inputs=0, outputs=0),
        )

    def scales(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Block scales, E4M3 [in / 16, out], and the weight's, fp32 []. Where a block's would underflow to 0 it is the
        smallest E4M3 number: TensorRT takes no scale of 0."""
        import torch

        blocks = weight.float().unflatten(0, (-1, self.group))
        largest = blocks.abs().amax(1)
        top = largest.max()
        # The block with the largest weight, drawn down to 4, must still have a scale within E4M3.
        whole = torch.where(top == 0, torch.ones_like(top), top / (E4M3_MAX * min(REACHES)))
        whole = whole.clamp(min=torch.finfo(torch.float32).tiny)
        unit = torch.where(largest == 0, torch.ones_like(largest), largest)
        best_error = torch.full_like(largest, float("inf"))
        best = torch.zeros_like(largest)
        for reach in REACHES:
            scale = (largest / (reach * whole)).clamp(E4M3_SMALLEST, E4M3_MAX).to(torch.float8_e4m3fn).float()
            step = (scale * whole)[:, None]
            rounded = self.nearest(blocks / step) * step
            error = ((rounded - blocks) / unit[:, None]).square().sum(1)
            best = torch.where(error < best_error, scale, best)
            best_error = torch.minimum(error, best_error)
        return best.to(torch.float8_e4m3fn), whole

    def step(self, *scales: Tensor) -> Tensor:
        """1 where the scale is 0, so that nothing is divided by that."""
        scale, global_scale = scales
        steps = scale.float() * global_scale
        return steps.masked_fill(steps == 0, 1.0)

    def indices(self, units: Tensor) -> Tensor:
        """The four bits of the nearest E2M1 value, uint8; beyond 6 it saturates."""
        import torch

        table = torch.tensor(VALUES, device=units.device)
        middles = (table[1:] + table[:-1]) / 2
        below = torch.nextafter(middles, torch.zeros_like(middles))
        bounds = torch.where(torch.tensor(TIES_UP, device=units.device), below, middles)
        magnitude = torch.bucketize(units.abs().contiguous(), bounds)
        return (magnitude + 8 * (torch.signbit(units) & (magnitude > 0))).to(torch.uint8)

    def nearest(self, units: Tensor, _offset: Tensor | None = None) -> Tensor:
        return self.code_values(units.device)[self.indices(units).int()]

    def pack(self, units: Tensor, *_scales: Tensor) -> Tensor:
        """uint8 [in, out / 2]."""
        return pack_nibbles(self.indices(units))

    def dequantize(self, values: Tensor, *scales: Tensor) -> Tensor:
        """In fp32."""
        scale, global_scale = scales
        numbers = self.code_values(values.device)[unpack_nibbles(values).int()]
        grouped = numbers.unflatten(0, (-1, self.group))
        return (grouped * (scale.float() * global_scale)[:, None]).flatten(0, 1)

    def kernel_operands(self, *scales: Tensor) -> tuple[Tensor, Tensor, None]:
        """The weight's scale is in the table."""
        scale, global_scale = scales
        return self.code_values(scale.device) * global_scale, scale, None


NVFP4 = BlockedE2M1(
    name="nvfp4",
    flag_help="as NVFP4 (E2M1 in blocks of 16), for Blackwell; ONNX Runtime has no kernel for it",
    group=16,
    has_branch=True,
    input_roundings=(InputRounding.BLOCKS,),
    min_capability=100,
    tensorrt=TensorRT.UNPACKED,
    kernel=BLOCK_GEMM,
    kernel_inputs=("nvfp4",),
)
