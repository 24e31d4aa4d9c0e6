"""What every number format in this folder is to the methods and the exporter: one module of functions each, by name.

A weight [in, out] is stored as values and scales; a format may have a second level of scales or zero points. Values are
small integers or code points times a step: `step` says how long it is in each group of input rows, `nearest` rounds in
its units.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from . import fp8, int4, int8, nf4, nvfp4, uint4

WIDE = "wide"
"""In a layout: the format that the network computes in."""

Part = tuple[str, str, tuple[int, ...]]
"""A stored tensor: what its name ends in after the weight's, its format as safetensors names it or `WIDE`, shape."""


class NumberFormat(Protocol):
    """A module that stores weights of a network."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight [in, out] of this shape can be stored so."""

    def layout(self, shape: tuple[int, int]) -> list[Part]:
        """The stored tensors of a weight [in, out], values first."""

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The stored tensors of `weight` [in, out], rounded to the nearest; `dtype` is that of `WIDE` ones."""

    def scales(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The stored tensors without the values."""

    def step(self, *scales: Tensor) -> Tensor:
        """fp32 [groups, out]: the length of one unit in each group of in / groups input rows."""

    def offset(self, *scales: Tensor) -> Tensor | None:
        """fp32 [groups, out]: the zero point that `nearest` wants to know, where the format has one."""

    def nearest(self, units: Tensor, offset: Tensor | None) -> Tensor:
        """Values in units of the step → the nearest that the format has."""

    def pack(self, units: Tensor, *scales: Tensor) -> Tensor:
        """Stored values of what `nearest` gave, [in, out]."""

    def dequantize(self, values: Tensor, *scales: Tensor) -> Tensor:
        """What the graph computes of the stored tensors: [in, out]."""


FORMATS: dict[str, NumberFormat] = {
    name: cast(NumberFormat, module)  # each takes the scales that it has, which a protocol cannot say
    for name, module in (
        ("fp8", fp8),
        ("int8", int8),
        ("int4", int4),
        ("uint4", uint4),
        ("nf4", nf4),
        ("nvfp4", nvfp4),
    )
}
