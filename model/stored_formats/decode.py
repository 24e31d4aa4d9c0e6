"""Finds the quantized modules among a file's tensors, and gives each a weight that is decoded when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ..safetensors_file import TensorInfo
from ..stored_weight import StoredWeight
from .bitsandbytes import STATES, decode_four_bits
from .fp8 import INPUT_SCALES, SCALES, decode_fp8
from .int8 import decode_int8, decode_llm_int8
from .module import INSTEAD, StoredModule
from .mxfp8 import decode_mxfp8
from .notes import read_note
from .nvfp4 import decode_nvfp4
from .refused import refuse_others, unknown_format

Decoder = Callable[[StoredModule], StoredWeight]

COMFY: dict[str, Decoder] = {
    "float8_e4m3fn": decode_fp8,
    "float8_e5m2": decode_fp8,
    "nvfp4": decode_nvfp4,
    "mxfp8": decode_mxfp8,
    "int8_tensorwise": decode_int8,
}
"""Format in ComfyUI's note → what decodes it."""

NOTE = "comfy_quant"

FOUR_BITS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
"""bitsandbytes' tensors behind a weight's own name."""

BESIDE = (
    *(*SCALES, *INPUT_SCALES, "weight_scale_2", "pre_quant_scale", NOTE, "SCB", "weight_format"),
    *(*STATES, *(f"weight.{name}" for name in FOUR_BITS)),
)
"""Tensors that belong to a module's weight, by their names without the module's."""

FILE_MARKS = ("scaled_fp8",)
"""Tensors that say only that there are scales."""


def decode_modules(
    path: Path, tensors: Mapping[str, TensorInfo], notes: Mapping[str, Mapping[str, Any]]
) -> dict[str, StoredWeight]:
    """The tensors of a file, or of all shards of a component, without those that belong to a quantized weight: such a
    weight has its logical shape, and is decoded when it is read. Reads nothing but notes.

    Args:
        path: of the file or folder, for messages.
        tensors: by name.
        notes: module → what the header says about its format.

    Raises:
        KontextError: a format is unknown, or a module's tensors do not fit its format or each other.
    """
    refuse_others(path, tensors)
    beside: dict[str, dict[str, TensorInfo]] = {module: {} for module in notes}
    for name, info in tensors.items():
        found = split_name(name)
        if found is not None:
            beside.setdefault(found[0], {})[found[1]] = info
    belonging = {info.name for group in beside.values() for info in group.values()}
    result: dict[str, StoredWeight] = {
        name: info
        for name, info in tensors.items()
        if name not in belonging and name.rpartition(".")[2] not in FILE_MARKS
    }
    for module, group in beside.items():
        weight = tensors.get(f"{module}.weight")
        if weight is None:
            first = next(iter(group.values())).name if group else f"the note of {module} in its header"
            raise KontextError(f"{path}: {first} belongs to {module}.weight, which is missing")
        result[weight.name] = decode_module(module, weight, group, notes.get(module))
    return result


def split_name(name: str) -> tuple[str, str] | None:
    """The module, and the rest of the name, of a tensor that belongs to its weight."""
    for rest in BESIDE:
        if name.endswith(f".{rest}"):
            return name[: -len(rest) - 1], rest
    return None


def decode_module(
    name: str, weight: TensorInfo, beside: dict[str, TensorInfo], header: Mapping[str, Any] | None
) -> StoredWeight:
    where = f"{weight.path}: the note of {name}"
    note = read_note(beside.pop(NOTE)) if NOTE in beside else header
    if header is not None and note != header:
        raise KontextError(
            f"{where} and that in the file's header contradict each other: {note} and {header}"
        )
    module = StoredModule(name, weight, beside, note or {})
    if note is not None:
        format = note.get("format")
        if not isinstance(format, str) or format not in COMFY:
            raise unknown_format(where, format, COMFY)
        return COMFY[format](module)
    if any(rest.startswith("weight.") for rest in beside):
        return decode_four_bits(module)
    if "SCB" in beside or "weight_format" in beside:
        return decode_llm_int8(module)
    if set(beside) <= set(INPUT_SCALES):
        return plain_weight(module)
    if not weight.dtype.startswith("F8") or not set(SCALES) & set(beside):
        raise module.refuse(
            next(iter(beside)),
            f"belongs to a quantized weight, but {name}.weight is {weight.dtype} {list(weight.shape)} and nothing in "
            f"the file says which format it has: {INSTEAD}",
        )
    return decode_fp8(module)


def plain_weight(module: StoredModule) -> StoredWeight:
    """A weight with nothing but scales of activations beside it, which are not used."""
    if not module.weight.dtype.startswith(("F", "BF")):
        raise module.refuse("weight", f"is {module.weight.dtype}, and the scale of its values is missing")
    return module.weight
