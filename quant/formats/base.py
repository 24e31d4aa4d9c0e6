"""The record of a number format: how a weight [in, out] is stored, who runs it, and its arithmetic.

A weight is stored as values and scales; some formats have a second level of scales, or zero points. Values are codes or
small integers that count steps: `step` is the length of one step in each group of input rows, and `nearest` rounds in
units of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COMPUTE = "compute"
"""In the place of a dtype: the one that the network computes in."""


SCALED_GEMM, INT4_GEMM, BLOCK_GEMM = "scaled_gemm", "int4_gemm", "block_gemm"
"""Kernels that multiply by stored weights: of 8 bits with inputs of the same format, INT4 in groups of 64 with inputs
in 16 bits or one of 8 bits, and NVFP4 with NVFP4 inputs."""


class TensorLayout(NamedTuple):
    """One stored tensor of a weight. Its name is the weight's with `suffix`; `dtype` is safetensors' name, or
    `COMPUTE`."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor of any weight [in, out] of a format.

    An element stands for `inputs` x `outputs` weights; 0 means all of them, and the tensor lacks that dimension.
    `transposed` tensors have the output channels first. `onnx_dtype` is ONNX's name of the dtype where an element is a
    byte of two values.
    """

    suffix: str
    dtype: str
    inputs: int = 1
    outputs: int = 1
    transposed: bool = False
    onnx_dtype: str = ""

    def layout(self, shape: tuple[int, int]) -> TensorLayout:
        """Of a weight of `shape` [in, out]."""
        sizes = [size // each for size, each in zip(shape, (self.inputs, self.outputs), strict=True) if each]
        return TensorLayout(self.suffix, self.dtype, tuple(sizes[::-1] if self.transposed else sizes))


class InputRounding(Enum):
    """How the inputs of a linear can be rounded to the format of its weight."""

    STATIC = "static"
    """One scale for all inputs, from calibration, stored as `_input_scale`."""
    DYNAMIC = "dynamic"
    """A scale for each token, found at run time."""
    BLOCKS = "blocks"
    """A scale for each of a token's blocks of channels, found at run time, and one for all of these scales, from
    calibration, stored as `_input_scale`."""

    @property
    def has_scale(self) -> bool:
        """Whether a scale is stored, which calibration finds."""
        return self is not InputRounding.DYNAMIC


class OnnxForm(Enum):
    """What replaces the weight in a graph (`export.graph.quantized_linear`)."""

    PER_CHANNEL = "per channel"
    """DequantizeLinear along the output channels."""
    BLOCKED = "blocked"
    """DequantizeLinear in blocks of input rows."""
    TWO_LEVEL = "two-level"
    """DequantizeLinear of the block scales, then of the values."""
    CODEBOOK = "codebook"
    """Gather from the table of codes, times the block's scale."""


class TensorRT(Enum):
    """What TensorRT makes of the weights in a graph (docs/engines.md)."""

    FUSED = "fused"
    """It unpacks them inside the product."""
    FUSED_CONSTANTS = "fused constants"
    """Inside the product only if they are the engine's own; inputs are first unpacked to 16 bits by another kernel."""
    UNPACKED = "unpacked"
    """Another kernel unpacks them to 16 bits first, wherever they are kept."""
    REFUSED = "refused"
    """Its parser lacks an operator, or does not take zero points."""


@dataclass(frozen=True, kw_only=True)
class NumberFormat(ABC):
    """A way to store the weights of linears.

    Args:
        name: as in recipes, manifests and flags.
        flag_help: ends the help of the flag --NAME, "store the blocks' weights …"; "" for a format without a flag.
        bits: of a value.
        group: input rows that share a scale; 0: all.
        codes: what each code stands for; empty for integers and floating-point numbers.
        transposed: values are stored as [out, in].
        has_branch: a low-rank branch goes with it unless --rank says otherwise.
        input_roundings: how a bundle can have the linear's inputs rounded to this format, the usual way first; empty:
            they are left alone.
        unpacked_inputs: other formats that a bundle can have the linear's inputs rounded to, with static scales: the
            weight is then unpacked to them before the product.
        min_capability: lowest compute capability, times ten, of GPUs that compute with it; 0: any GPU unpacks it.
        runs_on_cpu: ONNX Runtime multiplies it on a CPU without unpacking the weight, and its memory there was
            measured.
        cpu_memory: bytes that ONNX Runtime holds on a CPU for each byte stored.
        onnx_form: in the graph.
        tensorrt: what TensorRT makes of that.
        tensorrt_capability: lowest compute capability, times ten, that TensorRT compiles it for, where that is above
            `min_capability`.
        kernel: what multiplies by stored weights in the torch backend, `SCALED_GEMM`, `INT4_GEMM` or `BLOCK_GEMM`;
            "": each use unpacks the weight to 16 bits.
        kernel_inputs: formats that this kernel takes its inputs in, beside 16 bits.
    """

    name: str
    flag_help: str = ""
    bits: int
    group: int = 0
    codes: tuple[float, ...] = ()
    transposed: bool = False
    has_branch: bool = False
    input_roundings: tuple[InputRounding, ...] = ()
    unpacked_inputs: tuple[str, ...] = ()
    min_capability: int = 0
    runs_on_cpu: bool = False
    cpu_memory: float = 1.0
    onnx_form: OnnxForm
    tensorrt: TensorRT
    tensorrt_capability: int = 0
    kernel: str = ""
    kernel_inputs: tuple[str, ...] = ()

    # -- layout --

    @property
    @abstractmethod
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The stored tensors, values first."""

    def layout(self, shape: tuple[int, int]) -> list[TensorLayout]:
        """The stored tensors of a weight of `shape` [in, out]."""
        return [each.layout(shape) for each in self.tensors]

    def weight_shape(self, values: tuple[int, ...]) -> tuple[int, int] | None:
        """[in, out] of the weight whose values have this shape; None for no matrix."""
        if len(values) != 2:
            return None
        rows, columns = reversed(values) if self.transposed else values
        return rows * self.tensors[0].inputs, columns * self.tensors[0].outputs

    @property
    def multiples(self) -> tuple[int, int]:
        """What [in, out] of a weight must be multiples of."""
        return (
            math.lcm(*(each.inputs or 1 for each in self.tensors)),
            math.lcm(*(each.outputs or 1 for each in self.tensors)),
        )

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of `shape` [in, out] can be stored so: no group or byte is shared with the next channel."""
        return len(shape) == 2 and not any(
            size % multiple for size, multiple in zip(shape, self.multiples, strict=True)
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a weight that does not fit."""
        if not self.fits(shape):
            inputs, outputs = self.multiples
            raise ValueError(
                f"a weight of {list(shape)} cannot be stored as {self.name}: it must be [in, out] with in a multiple "
                f"of {inputs} and out of {outputs}"
            )

    # -- arithmetic --

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The stored tensors of `weight` [in, out], rounded to the nearest; `dtype` is that of `COMPUTE` tensors.

        Units are of the step as it is stored, so rounding the scale to 16 bits costs range and not accuracy.

        Raises:
            ValueError: the weight does not fit.
        """
        self.check(tuple(weight.shape))
        scales = self.scales(weight, dtype)
        return self.pack(self.units(weight, *scales), *scales), *scales

    @abstractmethod
    def scales(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The stored tensors without the values."""

    @abstractmethod
    def step(self, *scales: Tensor) -> Tensor:
        """fp32 [groups, out]: the length of one unit in each group of in / groups input rows."""

    def offset(self, *_scales: Tensor) -> Tensor | None:
        """fp32 [groups, out]: the zero points that `nearest` needs, in a format that has them."""
        return None

    def units(self, weight: Tensor, *scales: Tensor) -> Tensor:
        """fp32 [in, out]: the weight in units of the step."""
        step = self.step(*scales)
        return (weight.float().unflatten(0, (len(step), -1)) / step[:, None]).flatten(0, 1)

    @abstractmethod
    def nearest(self, units: Tensor, offset: Tensor | None = None) -> Tensor:
        """Values in units of the step → the nearest that the format has."""

    @abstractmethod
    def pack(self, units: Tensor, *scales: Tensor) -> Tensor:
        """The stored values nearest to `units` [in, out]."""

    @abstractmethod
    def dequantize(self, values: Tensor, *scales: Tensor) -> Tensor:
        """What the graph computes of the stored tensors: [in, out]."""

    # -- kernels --

    def kernel_operands(self, *scales: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """What the kernels that unpack a weight (`kernels/dequantize_*.py`) take beside the values: what each of 16
        codes stands for, fp32 (None: integers); the scales; zero points (None: none)."""
        return None, scales[0], None

    def code_values(self, device: torch.device) -> Tensor:
        """`codes` as fp32 on a device."""
        import torch

        return torch.tensor(self.codes, device=device)
