"""bitsandbytes' NF4 in diffusers' and transformers' folders: which linears, their tensors, and the note in config.json.

The numbers are those of our format NF4, whose codes and rounding are bitsandbytes'. Only their shapes differ: codes are
[n / 2, 1] and the largest absolute values [n / 64], not quantized a second time.

Which linears are quantized is said by a list of those that are not, `llm_int8_skip_modules`, which cannot name every
linear alone: diffusers compares its names with the last part of a module's name too, so that the transformer's
`proj_out` cannot be left out without the single blocks'. It is quantized then.
https://github.com/huggingface/diffusers, src/diffusers/quantizers/bitsandbytes/utils.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ...errors import KontextError
from ...quant.formats.nf4 import NF4
from ...safetensors_header import aligned
from ..weights.plan import UnplacedTensor
from .source import SourceWeight

if TYPE_CHECKING:
    from torch import Tensor

    from .source import WeightSource

STATE = "quant_state.bitsandbytes__nf4"

KEPT = {"text_encoder_2": ("wo",)}
"""Component → names of linears that its class never has in four bits: T5's second feed-forward layer, which
transformers keeps in 16 bits or more (`_keep_in_fp32_modules`)."""


def quantized(component: str, weights: Sequence[SourceWeight]) -> frozenset[str]:
    """The diffusers tensors of a component that are stored as NF4: those that the recipe has so and the component's
    class takes so, and those that go with them.

    Raises:
        KontextError: one that has to go with them does not fit NF4's blocks.
    """
    kept = KEPT.get(component, ())
    chosen = {
        name
        for weight in weights
        if weight.layer.format == NF4.name
        for name in weight.diffusers_names
        if module_of(name).rpartition(".")[2] not in kept
    }
    linears = {
        name: shape
        for weight in weights
        if weight.is_linear
        for name, shape in zip(weight.diffusers_names, weight.diffusers_shapes, strict=True)
    }
    modules = {module_of(name) for name in chosen}
    others = [name for name in linears if name not in chosen] if component == "transformer" else []
    for name in others:
        if any(skips(module_of(name), module) for module in modules):
            if not NF4.fits(linears[name][::-1]):
                raise KontextError(
                    f"{component}: {name} {list(linears[name])} does not fit NF4's blocks of {NF4.group}, and "
                    "diffusers would have it in them"
                )
            chosen.add(name)
    return frozenset(chosen)


def module_of(name: str) -> str:
    return name.removesuffix(".weight")


def skips(entry: str, module: str) -> bool:
    """Whether diffusers leaves out `module` for an `entry` of the list."""
    return entry in (module, module.rpartition(".")[2]) or f"{entry}." in module


def skipped_modules(component: str, weights: Iterable[SourceWeight], names: frozenset[str]) -> list[str]:
    """The list for config.json: every linear that is not one of `names`."""
    kept = KEPT.get(component, ())
    others = (
        module_of(name)
        for weight in weights
        if weight.is_linear
        for name in weight.diffusers_names
        if name not in names
    )
    return [*kept, *(name for name in others if name.rpartition(".")[2] not in kept)]


def configuration(dtype: str, skipped: Sequence[str]) -> dict[str, object]:
    """`quantization_config`, as diffusers and transformers write it; `dtype` is what is computed in, as PyTorch names
    it."""
    return {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(skipped),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def entries(name: str, shape: tuple[int, ...], dtype: str) -> list[UnplacedTensor]:
    """The tensors of a weight [out, in], those of wider numbers first."""
    count = shape[0] * shape[1]
    return [
        (f"{name}.absmax", "F32", (count // NF4.group,)),
        (f"{name}.quant_map", "F32", (len(NF4.codes),)),
        (name, "U8", (count // 2, 1)),
        (f"{name}.{STATE}", "U8", (len(state(shape, dtype)),)),
    ]


def state(shape: tuple[int, ...], dtype: str) -> bytes:
    """bitsandbytes' note; spaces behind it keep what follows aligned."""
    fields = {"quant_type": "nf4", "blocksize": NF4.group, "dtype": dtype, "shape": list(shape)}
    return aligned(json.dumps(fields).encode())


def make(source: WeightSource, weight: SourceWeight, dtype: str) -> list[Tensor]:
    """The tensors of every part of a weight, as `entries` lists them."""
    import torch

    codes, absmax = NF4.quantize(source.read_exactly(weight).t(), torch.float32)
    table = NF4.code_values(torch.device("cpu"))
    result: list[Tensor] = []
    split = zip(codes.split(list(weight.rows)), absmax.split(list(weight.rows)), strict=True)
    for shape, (own, largest) in zip(weight.diffusers_shapes, split, strict=True):
        note = torch.frombuffer(bytearray(state(shape, dtype)), dtype=torch.uint8)
        result += [largest.reshape(-1), table, own.reshape(-1, 1), note]
    return result
