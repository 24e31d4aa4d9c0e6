"""Integers of four bits in groups of input rows, each group and output channel with a scale: what `int4` and `uint4`
have in common.

The layout is that of ONNX's DequantizeLinear with axis 0 and block_size: two values a byte along a row, the first in
the low half. Scales are searched for the least squared error (as "MSE clipping" in most toolkits) rather than taken
from the largest weight, which a normal distribution rewards with a fifth less error at four bits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..parallel import on_all_cores
from .base import COMPUTE, NumberFormat, OnnxForm, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 1 << 17
"""Weights that are worked on at once: 512 kB in fp32, so that the search's many passes stay in a core's cache."""


@dataclass(frozen=True, kw_only=True)
class Grouped(NumberFormat):
    """`onnx_dtype` of the values, as ONNX names it. The default group is what TensorRT, MatMulNBits and SVDQuant
    use."""

    onnx_dtype: str
    bits: int = 4
    group: int = 64
    onnx_form: OnnxForm = OnnxForm.BLOCKED

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("", "U8", outputs=2, onnx_dtype=self.onnx_dtype),
            TensorSpec("_scale", COMPUTE, inputs=self.group),
        )

    @abstractmethod
    def best_scales(self, block: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What is stored beside the values of one group, fp32 [group, columns]: [1, columns] each, packed where it is
        of four bits. Of those tried the scales with the least squared error."""

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        self.check(tuple(weight.shape))

        def quantized(block: Tensor) -> tuple[Tensor, ...]:
            scales = self.best_scales(block, dtype)
            return self.pack(block / self.step(*scales), *scales), *scales

        return self.by_blocks(weight, quantized)

    def scales(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return self.by_blocks(weight, lambda block: self.best_scales(block, dtype))

    def by_blocks(
        self, weight: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """`function` of the fp32 weights of each block, a group high; its results joined as the blocks lie."""
        import torch

        width = max(2, BLOCK // self.group // 2 * 2)
        blocks = [block for rows in weight.split(self.group) for block in rows.split(width, dim=1)]
        made = on_all_cores(lambda block: function(block.float()), blocks)
        across = -(-weight.shape[1] // width)
        groups = [made[start : start + across] for start in range(0, len(made), across)]
        rows = [[torch.cat(parts, dim=1) for parts in zip(*group, strict=True)] for group in groups]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    def step(self, *scales: Tensor) -> Tensor:
        return scales[0].float()
