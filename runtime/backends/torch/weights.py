"""A bundle's weights for the torch backend: safetensors straight to the device, linears in whatever format.

Bundles store the weights of linears as [in, out]; E4M3 and INT8 go with a scale for each output channel, INT4 (two a
byte) with one for each group of 64 inputs, and any of them may have a low-rank branch `_down` [in, rank], `_up`
[rank, out], a static scale of its input, `_input_scale`, and its input's mean to subtract, `_input_mean`, with what the
linear makes of that, `_mean_output` [out]. NF4, NVFP4 and UINT4 are packed in memory, and unpacked to 16 bits for
each use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ....errors import KontextError
from ....kernels import int4
from ....kernels.dequantize_4bit import dequantize_4bit_op
from ....kernels.dequantize_8bit import dequantize_8bit_op
from ....quant import nf4, nvfp4
from ....quant.formats import FORMATS as NUMBER_FORMATS
from ....quant.formats import WIDE

STORED = {"F8_E4M3": "fp8", "I8": "int8", "U8": "int4"}
FORMATS = {torch.float8_e4m3fn: "fp8", torch.int8: "int8", torch.uint8: "int4"}

CODECS = {"_absmax": "nf4", "_global_scale": "nvfp4", "_zero_point": "uint4"}
"""What only the weights of a format have beside them."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class StoredLinear:
    """A linear as the bundle has it: `weight` [in, out] in its format (INT4: uint8 [in, out / 2]) and what goes
    with it."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    input_scale: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    input_mean: Tensor | None = None
    """What is subtracted from the inputs [in] first; `bias` holds what the linear makes of it."""
    codec: str = ""
    """A format of 4-bit codes (NF4, NVFP4, UINT4), which is unpacked whenever it is needed."""
    table: Tensor | None = None
    """What NF4's and NVFP4's codes stand for, fp32 [16]."""
    zeros: Tensor | None = None
    """UINT4's zero points."""

    @property
    def format(self) -> str:
        """What its kernel computes with: "fp8", "int8", "int4" or "16-bit"."""
        return "16-bit" if self.codec else FORMATS.get(self.weight.dtype, "16-bit")

    @property
    def channels(self) -> int:
        if self.codec:
            return self.weight.shape[0] if self.codec == "nf4" else 2 * self.weight.shape[1]
        return self.weight.shape[1] * (2 if self.format == "int4" else 1)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [in, out] in `dtype`, without the low-rank branch."""
        if self.scale is None:
            return self.weight.to(dtype)
        if self.codec or self.format == "int4":
            turned = self.codec == "nf4"
            unpacked: Tensor = dequantize_4bit_op(
                self.weight, self.table, self.scale, self.zeros, turned, dtype
            )
            return unpacked
        scaled: Tensor = dequantize_8bit_op(self.weight, self.scale, dtype)
        return scaled

    def apply(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out] with activations as they are."""
        if self.input_mean is not None:
            x = x - self.input_mean.to(x.dtype)
        y = x @ self.dense(x.dtype)
        if self.down is not None and self.up is not None:
            y = y + (x @ self.down.to(x.dtype)) @ self.up.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def each_tensor(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """A copy of a data class of tensors, nested or in tuples, with every tensor changed."""
    if isinstance(part, Tensor):
        return change(part)  # type: ignore[return-value]
    if isinstance(part, tuple):
        return tuple(each_tensor(each, change) for each in part)  # type: ignore[return-value]
    if hasattr(part, "__dataclass_fields__"):
        values = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]
        changed = {name: each_tensor(value, change) for name, value in values.items()}
        return replace(part, **changed)  # type: ignore[type-var]
    return part


def code_values(codec: str, device: torch.device, *others: Tensor) -> Tensor | None:
    """What the sixteen codes of a format stand for, fp32; NVFP4's with its scale of the whole weight."""
    if codec == "nf4":
        return torch.tensor(nf4.CODES, device=device)
    return nvfp4.decode(torch.arange(16, device=device)) * others[0] if codec == "nvfp4" else None


def to_device(part: Part, device: torch.device) -> Part:
    """`part` with its tensors on `device`; a GPU copies pinned ones while the host goes on."""
    return each_tensor(part, lambda tensor: tensor.to(device, non_blocking=True))


class WeightFile:
    """One network's tensors, read when asked for; what nobody asks for is a fault.

    Args:
        path: the safetensors file.
        device: where tensors are read to.
        dtype: of weights that are not quantized, and of scales.
    """

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.path = path
        self.dtype = dtype
        try:
            self.file = safe_open(str(path), framework="pt", device=str(device))
        except (OSError, SafetensorError) as fault:
            raise KontextError(f"{path} cannot be read: {fault}") from None
        self.names = set(self.file.keys())
        self.unread = set(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def formats(self) -> set[str]:
        """Of the quantized weights that it holds: "fp8", "int8", "int4"."""
        stored = {
            str(self.file.get_slice(name).get_dtype()) for name in self.names if name.endswith(".weight")
        }
        return {STORED[dtype] for dtype in stored & set(STORED)}

    def read(self, name: str, shape: Iterable[int] | None = None, convert: bool = True) -> Tensor:
        """One tensor, floating point ones in the format that is computed in unless `convert` says not to.

        Raises:
            KontextError: it is not there, or has another shape.
        """
        if name not in self.names:
            raise KontextError(f"{self.path} has no tensor {name}: the bundle is damaged")
        self.unread.discard(name)
        tensor: Tensor = self.file.get_tensor(name)
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise KontextError(f"{self.path}: {name} is {list(tensor.shape)}, expected {list(shape)}")
        wide = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
        return tensor.to(self.dtype) if wide and convert else tensor

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> StoredLinear:
        """The linear `name` of `rows` inputs and `columns` outputs.

        Raises:
            KontextError: its format is none that this backend computes, or its parts do not go together.
        """
        key = f"{name}.weight"
        codec = next((each for ending, each in CODECS.items() if f"{key}{ending}" in self.names), "")
        if codec:
            (ending, _, shape), *layout = NUMBER_FORMATS[codec].layout((rows, columns))
            weight = self.read(f"{key}{ending}", shape)
            steps, *others = (
                self.read(f"{key}{ending}", shape, dtype == WIDE) for ending, dtype, shape in layout
            )
            down, up, mean = self.beside(key, rows, columns)
            return StoredLinear(
                weight,
                self.bias(name, columns, bias),
                steps,
                down=down,
                up=up,
                input_mean=mean,
                codec=codec,
                table=code_values(codec, weight.device, *others),
                zeros=others[0] if codec == "uint4" else None,
            )
        weight = self.read(key)
        format = FORMATS.get(weight.dtype, "16-bit")
        if format == "16-bit" and not weight.is_floating_point():
            raise KontextError(
                f"{self.path}: {key} is in {weight.dtype}, which the torch backend does not compute"
            )
        packed = format == "int4"
        self.expect(key, weight, (rows, columns // 2 if packed else columns))
        scale = None
        if format != "16-bit":
            scale = self.read(f"{key}_scale", (rows // int4.GROUP, columns) if packed else (columns,))
        down, up, mean = self.beside(key, rows, columns)
        step = self.read(f"{key}_input_scale") if f"{key}_input_scale" in self.names else None
        if step is not None:
            if step.numel() != 1:
                raise KontextError(
                    f"{self.path}: {key}_input_scale must be one number, not {list(step.shape)}"
                )
            step = step.float().reshape(1)
        return StoredLinear(weight, self.bias(name, columns, bias), scale, step, down, up, mean)

    def beside(self, key: str, rows: int, columns: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The low-rank branch's two halves and the inputs' mean of the weight `key`, where there are any."""
        down, up, mean = (
            self.read(f"{key}{suffix}") if f"{key}{suffix}" in self.names else None
            for suffix in ("_down", "_up", "_input_mean")
        )
        if (down is None) != (up is None):
            raise KontextError(f"{self.path}: {key} has half of a low-rank branch")
        if down is not None and up is not None:
            self.expect(f"{key}_down", down, (rows, up.shape[0]))
            self.expect(f"{key}_up", up, (down.shape[1], columns))
        if mean is not None:
            self.expect(f"{key}_input_mean", mean, (rows,))
        return down, up, mean

    def bias(self, name: str, columns: int, there: bool) -> Tensor | None:
        """The bias of linear `name`, with what it makes of its inputs' mean where these are centred."""
        parts = [self.read(f"{name}.bias", (columns,))] if there else []
        if f"{name}.weight_mean_output" in self.names:
            parts.append(self.read(f"{name}.weight_mean_output", (columns,)))
        return sum(parts[1:], parts[0]) if parts else None

    def expect(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise KontextError(f"{self.path}: {name} is {list(tensor.shape)}, expected {list(shape)}")

    def close(self) -> None:
        """Raises KontextError if a tensor was not used: its meaning is not known here, and leaving it out would be
        wrong."""
        if self.unread:
            names = ", ".join(sorted(self.unread)[:3])
            raise KontextError(
                f"{self.path} holds {len(self.unread)} tensors that the torch backend does not know ({names}): "
                "use --backend onnxruntime, or export in another format"
            )


class LinearModule(nn.Module):
    """In the place of a network's `nn.Linear`; its tensors are set from outside. Those on another device than its
    inputs are copied for each use."""

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
