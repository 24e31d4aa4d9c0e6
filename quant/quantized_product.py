"""What a linear computes of its inputs as it is deployed, in fp32: for measuring layers without a graph.

y = rounded((x - mean) * factor) @ weight + ((x - mean) * factor @ down) @ up + the output for the mean
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .formats import FORMATS
from .formats.base import InputRounding
from .formats.fp8 import E4M3_MAX
from .formats.nvfp4 import VALUES
from .quantize import dequantize_weight
from .recipe import Layer
from .weight_layout import weight_layout


class QuantizedProduct:
    """The product of a weight [in, out] of `shape` that is stored as `tensors` (see `quantize_weight`)."""

    def __init__(self, tensors: Sequence[Tensor], layer: Layer, shape: tuple[int, int]) -> None:
        names = [each.suffix for each in weight_layout(layer, shape)]
        self.layer = layer
        self.found = dict(zip(names, tensors, strict=True))
        values = [tensor for name, tensor in self.found.items() if name not in ("_down", "_up")]
        self.weight = dequantize_weight(values, replace(layer, rank=0))

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] → fp32 [..., out], without the bias."""
        x = x.float()
        if self.layer.centred:
            x = x - self.found["_input_mean"].float()
        if self.layer.scaled:
            x = x * self.found["_input_factor"].float()
        y = self.rounded(x) @ self.weight
        if self.layer.rank:
            y = y + x @ self.found["_down"].float() @ self.found["_up"].float()
        return y + self.found["_mean_output"].float() if self.layer.centred else y

    def rounded(self, x: Tensor) -> Tensor:
        """The inputs as they are multiplied."""
        way = self.layer.input_rounding
        if way is None:
            return x
        format = FORMATS[self.layer.activations]
        if way is InputRounding.STATIC:
            step = self.found["_input_scale"].float()
            return format.nearest(x / step) * step
        if way is InputRounding.DYNAMIC:
            step = (x.abs().amax(-1, keepdim=True) / (2 ** (format.bits - 1) - 1)).clamp(min=1e-30)
            return format.nearest(x / step) * step
        whole = self.found["_input_scale"].float()
        blocks = x.unflatten(-1, (-1, format.group))
        largest = blocks.abs().amax(-1, keepdim=True)
        scale = (largest / (VALUES[-1] * whole)).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()
        step = scale * whole
        codes = format.nearest(blocks / torch.where(step == 0, torch.ones_like(step), step))
        return (codes * step).flatten(-2)
