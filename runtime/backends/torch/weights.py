"""A bundle's weights for the torch backend: safetensors straight to the device, linears in any number format.

Bundles store the weights of linears as [in, out], in the tensors that their format's record says (`quant.formats`). Any
of them may have a low-rank branch `_down` [in, rank] and `_up` [rank, out]; a static scale of its inputs,
`_input_scale`; the mean to subtract from its inputs, `_input_mean` [in], with the linear's output for that mean,
`_mean_output` [out]; and what its inputs are multiplied by then, `_input_factor` [in].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ....errors import KontextError
from ....kernels.dequantize_4bit import dequantize_4bit_op
from ....kernels.dequantize_8bit import dequantize_8bit_op
from ....quant.formats import COMPUTE, FORMATS, find_format
from ....quant.formats.base import NumberFormat
from ....regular_files import open_regular
from ..runnable import NVFP4

Tree = TypeVar("Tree")
"""A tensor, or tensors in tuples and data classes, nested."""


@dataclass(frozen=True)
class StoredLinear:
    """A linear as the bundle has it: `weight` [in, out] in its number format, or [out, in] where it is `transposed`,
    and what goes with it."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    input_scale: Tensor | None = None
    """The static scale of 8-bit inputs, or that of all blocks of NVFP4 ones; fp32 [1]."""
    down: Tensor | None = None
    up: Tensor | None = None
    input_mean: Tensor | None = None
    """To be subtracted from the inputs [in]; `bias` includes the linear's output for it."""
    input_factor: Tensor | None = None
    """To multiply the inputs by after that [in]; the weight's rows are divided by it."""
    format: str = ""
    """A name in `quant.formats.FORMATS`; "" for a weight that is not quantized."""
    table: Tensor | None = None
    """What the codes of a 4-bit format stand for, fp32 [16]; None for integers."""
    zeros: Tensor | None = None
    """Zero points of 4-bit integers, packed like them."""
    transposed: bool = False

    @property
    def channels(self) -> int:
        if self.transposed:
            return self.weight.shape[0]
        return self.weight.shape[1] * (2 if self.is_packed else 1)

    @property
    def is_packed(self) -> bool:
        """Whether a byte has two weights."""
        return self.weight.dtype == torch.uint8

    def with_branch(self, down: Tensor, up: Tensor, dtype: torch.dtype) -> StoredLinear:
        """This linear with another low-rank branch, fp32 [in, rank] and [rank, out], stored in `dtype`. Its inputs are
        those of the linear, before a mean is subtracted and a factor multiplied."""
        down, up, bias = down.to(self.weight.device), up.to(self.weight.device), self.bias
        if self.input_mean is not None:
            constant = ((self.input_mean.float() @ down) @ up).to(dtype)
            bias = constant if bias is None else bias + constant
        if self.input_factor is not None:
            down = down / self.input_factor.float()[:, None]
        if self.down is not None and self.up is not None:
            down, up = torch.cat([self.down.float(), down], 1), torch.cat([self.up.float(), up])
        return replace(self, down=down.to(dtype), up=up.to(dtype), bias=bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [in, out] in `dtype`, without the low-rank branch."""
        if self.scale is None:
            return self.weight.to(dtype)
        if self.is_packed:
            unpacked: Tensor = dequantize_4bit_op(
                self.weight, self.table, self.scale, self.zeros, self.transposed, dtype
            )
            return unpacked
        scaled: Tensor = dequantize_8bit_op(self.weight, self.scale, dtype)
        return scaled

    def apply(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out] with the inputs in the dtype that they have."""
        if self.input_mean is not None:
            x = x - self.input_mean.to(x.dtype)
        if self.input_factor is not None:
            x = x * self.input_factor.to(x.dtype)
        y = x @ self.dense(x.dtype)
        if self.down is not None and self.up is not None:
            y = y + (x @ self.down.to(x.dtype)) @ self.up.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def each_tensor(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """A copy of nested data with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)  # type: ignore[return-value]
    if isinstance(tree, tuple):
        return tuple(each_tensor(each, change) for each in tree)  # type: ignore[return-value]
    if hasattr(tree, "__dataclass_fields__"):
        values = {field.name: getattr(tree, field.name) for field in fields(tree)}  # type: ignore[arg-type]
        changed = {name: each_tensor(value, change) for name, value in values.items()}
        return replace(tree, **changed)  # type: ignore[type-var]
    return tree


def to_device(tree: Tree, device: torch.device) -> Tree:
    """`tree` with its tensors on `device`; from page-locked memory a GPU copies them while the host goes on."""
    return each_tensor(tree, lambda tensor: tensor.to(device, non_blocking=True))


class WeightFile:
    """One network's tensors, read on demand; a tensor that nothing reads is an error.

    Args:
        path: the safetensors file.
        device: where tensors are read to.
        dtype: of weights that are not quantized, and of scales.
    """

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.path = path
        self.dtype = dtype
        try:
            open_regular(path).close()
            self.file = safe_open(str(path), framework="pt", device=str(device))
        except (OSError, SafetensorError) as fault:
            raise KontextError(f"{path} cannot be read: {fault}") from None
        self.names = set(self.file.keys())
        self.unread = set(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def formats(self) -> set[str]:
        """Names of the number formats of the quantized weights that it holds."""
        found = (self.format_of(name) for name in self.names if name.endswith(".weight"))
        return {format.name for format in found if format is not None}

    @property
    def has_input_scales(self) -> bool:
        """Whether any weight has a scale of its inputs."""
        return any(name.endswith("_input_scale") for name in self.names)

    def format_of(self, weight: str) -> NumberFormat | None:
        """The number format of a weight; None if it is not quantized."""
        stored = {}
        for suffix in {tensor.suffix for format in FORMATS.values() for tensor in format.tensors}:
            if f"{weight}{suffix}" in self.names:
                header = self.file.get_slice(f"{weight}{suffix}")
                stored[suffix] = str(header.get_dtype()), tuple(header.get_shape())
        return find_format(stored)

    def read(self, name: str, shape: Iterable[int] | None = None, convert: bool = True) -> Tensor:
        """One tensor; in 16 or 32 bits it is cast to `dtype` unless `convert` is false.

        Raises:
            KontextError: it is missing, or has another shape.
        """
        if name not in self.names:
            raise KontextError(f"{self.path} has no tensor {name}: the bundle is damaged")
        self.unread.discard(name)
        tensor: Tensor = self.file.get_tensor(name)
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise KontextError(f"{self.path}: {name} is {list(tensor.shape)}, expected {list(shape)}")
        wide = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
        return tensor.to(self.dtype) if wide and convert else tensor

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> StoredLinear:
        """The linear `name`.

        Raises:
            KontextError: its number format is unknown, or its tensors do not fit together.
        """
        key = f"{name}.weight"
        format = self.format_of(key)
        if format is None:
            weight, table, scale, zeros = self.read(key, (inputs, outputs)), None, None, None
            if not weight.is_floating_point():
                raise KontextError(
                    f"{self.path}: {key} is in {weight.dtype}, which the torch backend does not know"
                )
        else:
            weight, *scales = (
                self.read(f"{key}{suffix}", shape, convert=dtype == COMPUTE)
                for suffix, dtype, shape in format.layout((inputs, outputs))
            )
            table, scale, zeros = format.kernel_operands(*scales)
        # The kernels find scales of their own for a weight that is unpacked to 8 bits.
        self.unread.discard(f"{key}_column_scale")
        return StoredLinear(
            weight,
            self.bias(name, outputs, bias),
            scale,
            self.input_scale(key),
            *self.branch(key, inputs, outputs),
            self.of_inputs(f"{key}_input_mean", inputs),
            self.of_inputs(f"{key}_input_factor", inputs),
            "" if format is None else format.name,
            table,
            zeros,
            format is not None and format.transposed,
        )

    def input_scale(self, key: str) -> Tensor | None:
        """The static scale of a weight's inputs, fp32 [1], if it has one."""
        name = f"{key}_input_scale"
        if name not in self.names:
            return None
        scale = self.read(name, convert=False)  # that of blocks is too small for fp16
        if scale.numel() != 1:
            raise KontextError(f"{self.path}: {name} must be one number, not {list(scale.shape)}")
        scale = scale.float().reshape(1)
        # A subnormal one's reciprocal is infinite.
        if not (math.isfinite(value := float(scale)) and value >= torch.finfo(torch.float32).tiny):
            raise KontextError(
                f"{self.path}: {name} is {value:g}, and must be a positive number: export the bundle again"
            )
        return scale

    def branch(self, key: str, inputs: int, outputs: int) -> tuple[Tensor | None, Tensor | None]:
        """The matrices of the low-rank branch beside the weight `key`, if it has one."""
        names = [f"{key}{suffix}" for suffix in ("_down", "_up")]
        found = [name in self.names for name in names]
        if not any(found):
            return None, None
        if not all(found):
            raise KontextError(f"{self.path}: {key} has only half of a low-rank branch")
        down, up = (self.read(name) for name in names)
        self.expect(names[0], down, (inputs, up.shape[0]))
        self.expect(names[1], up, (down.shape[1], outputs))
        return down, up

    def of_inputs(self, name: str, inputs: int) -> Tensor | None:
        """The tensor `name`, a number for each input [in]; None if it is not there."""
        return self.read(name, (inputs,)) if name in self.names else None

    def bias(self, name: str, outputs: int, has_bias: bool) -> Tensor | None:
        """The bias of linear `name`, with its output for its inputs' mean if these are centred."""
        parts = [self.read(f"{name}.bias", (outputs,))] if has_bias else []
        if f"{name}.weight_mean_output" in self.names:
            parts.append(self.read(f"{name}.weight_mean_output", (outputs,)))
        return sum(parts[1:], parts[0]) if parts else None

    def expect(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise KontextError(f"{self.path}: {name} is {list(tensor.shape)}, expected {list(shape)}")

    def close(self) -> None:
        """Raises KontextError if a tensor was not read: it is unknown here, and leaving it out would be wrong."""
        if self.unread:
            names = ", ".join(sorted(self.unread)[:3])
            other = "" if NVFP4 in self.formats() else "use --backend onnxruntime, or "
            raise KontextError(
                f"{self.path} holds {len(self.unread)} tensors that the torch backend does not know ({names}): "
                f"{other}export in another format"
            )


class LinearModule(nn.Module):
    """Replaces a network's `nn.Linear`; its tensors are set from outside, and copied for each use if they are on
    another device than the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: StoredLinear | None = None

    @property
    def bias(self) -> Tensor | None:
        return None if self.stored is None else self.stored.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.stored is None:
            raise RuntimeError("this linear has no weights")
        return to_device(self.stored, x.device).apply(x)


def read_network(network: nn.Module, file: WeightFile) -> dict[str, Tensor | StoredLinear]:
    """All weights of a network built on `meta`, whose linears are replaced by `LinearModule`."""
    weights: dict[str, Tensor | StoredLinear] = {}
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Linear):
            weights[path] = file.linear(
                path, module.in_features, module.out_features, module.bias is not None
            )
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, LinearModule())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        weights[name] = file.read(name, tensor.shape)
    file.close()
    return weights


def place(network: nn.Module, weights: Mapping[str, Tensor | StoredLinear]) -> None:
    """Puts weights into a network that `read_network` has prepared."""
    for name, value in weights.items():
        if isinstance(value, StoredLinear):
            network.get_submodule(name).stored = value  # type: ignore[assignment]
        else:
            parent, _, child = name.rpartition(".")
            module = network.get_submodule(parent)
            if child in module._parameters:
                module._parameters[child] = nn.Parameter(value, requires_grad=False)
            else:
                module._buffers[child] = value
