"""Interprets the names in a LoRA's file: which native weight and rows, which kind of adapter.

Every trainer names the same linear differently; tables here hold all names. Their keys have underscores in place of
dots, as in kohya's scripts; no two names become equal by that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from .config import TransformerConfig
from .diffusers_format import modulation_sources, transformer_sources

Role = Literal["down", "up", "bias", "alpha", "diff", "diff_b", "norm"]
"""What a tensor is to its module: a factor, the bias of the up factor, alpha, a full difference of weight or bias
(ComfyUI), or a norm that replaces the model's."""

PREFIXES = {
    "transformer": (
        "",
        "transformer.",
        "base_model.model.",
        "base_model.model.transformer.",
        "transformer.base_model.model.",
        "diffusion_model.",
        "model.diffusion_model.",
        "lora_unet_",
        "lora_transformer_",
    ),
    "text_encoder": ("text_encoder.", "text_encoders.clip_l.transformer.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "text_encoders.t5xxl.transformer.", "lora_te2_", "lora_te3_"),
}
"""Component → prefixes that names of its modules may have."""

TENSOR_NAME = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<down>(?:lora_A(?:\.[^.]+)?|lora_down|(?:lora\.|lora_linear_layer\.)?down)\.weight)|"
    r"(?P<up>(?:lora_B(?:\.[^.]+)?|lora_up|(?:lora\.|lora_linear_layer\.)?up)\.weight)|"
    r"(?P<bias>lora_B(?:\.[^.]+)?\.bias)|"
    r"(?P<alpha>alpha)|(?P<diff>diff)|(?P<diff_b>diff_b))"
)
"""PEFT writes lora_A, with or without the adapter's name after it; kohya lora_down; old diffusers lora.down and
lora_linear_layer.down; XLabs only down, after a module name that ends in _lora."""


OTHER_KINDS = {
    "dora_scale": "a DoRA (weight-decomposed)",
    "lora_magnitude_vector": "a DoRA (weight-decomposed)",
    "hada_": "a LoHa (Hadamard product)",
    "lokr_": "a LoKr (Kronecker product)",
    "lora_mid": "a convolution LoRA (LoCon)",
}
"""Parts of tensor names that identify adapters other than W + up @ down."""


@dataclass(frozen=True)
class TargetRows:
    """Output rows of a native weight."""

    network: str
    weight: str
    rows: slice

    @property
    def bias(self) -> str:
        return self.weight.removesuffix("weight") + "bias"


def split_name(tensor: str) -> tuple[str, Role]:
    """A tensor's name → its module, with prefix, and its role. A name of unknown form counts as a norm."""
    match = TENSOR_NAME.fullmatch(tensor)
    return (match["module"], cast(Role, match.lastgroup)) if match else (tensor, "norm")


def resolve(
    module: str, tables: Mapping[str, Mapping[str, tuple[TargetRows, ...]]]
) -> tuple[str, str, tuple[TargetRows, ...]] | None:
    """Component, name without prefix, and targets of a module; None if no table has it."""
    flat = flatten(module)
    for component, prefixes in PREFIXES.items():
        for prefix in prefixes:
            targets = tables[component].get(flat[len(prefix) :]) if flat.startswith(flatten(prefix)) else None
            if targets is not None:
                return component, module[len(prefix) :], targets
    return None


def flatten(name: str) -> str:
    return name.replace(".", "_")


def module_tables(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], config: TransformerConfig
) -> dict[str, dict[str, tuple[TargetRows, ...]]]:
    """Component → flattened module name → targets of the module's output rows, in order.

    Args:
        shapes: network → native weight → shape.
        config: the transformer's sizes.
    """
    tables = {"transformer": transformer_modules(shapes, config)}
    for component in ("text_encoder", "text_encoder_2"):
        tables[component] = text_modules(component, shapes[component])
    return {
        component: {flatten(name): targets for name, targets in table.items()}
        for component, table in tables.items()
    }


def transformer_modules(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], config: TransformerConfig
) -> dict[str, tuple[TargetRows, ...]]:
    """Linears by the names of Black Forest Labs, diffusers and XLabs; norms by their full names."""
    table: dict[str, tuple[TargetRows, ...]] = {}
    sizes = [config.hidden_size] * 3 + [config.mlp_size]
    networks = {"transformer": transformer_sources(config), "modulation": modulation_sources(config)}
    for network, sources in networks.items():
        for weight, source in sources.items():
            if weight.endswith(".bias"):
                continue
            height = shapes[network][weight][0]
            whole = TargetRows(network, weight, slice(0, height))
            if weight.endswith(".scale"):
                table.update(dict.fromkeys((weight, *source.parts), (whole,)))
                continue
            table[weight.removesuffix(".weight")] = (whole,)
            modules = [part.removesuffix(".weight") for part in source.parts]
            if source.join == "swap_halves":  # diffusers' rows are (scale, shift), native ones (shift, scale)
                halves = slice(height // 2, height), slice(0, height // 2)
                table[modules[0]] = tuple(TargetRows(network, weight, half) for half in halves)
                continue
            start = 0
            for module, size in zip(modules, sizes if len(modules) > 1 else [height], strict=False):
                table[module] = (TargetRows(network, weight, slice(start, start + size)),)
                start += size
    for i in range(config.num_double_blocks):
        for stream, number in (("img", 1), ("txt", 2)):
            for linear in ("qkv", "proj"):
                xlabs = f"double_blocks.{i}.processor.{linear}_lora{number}"
                table[xlabs] = table[f"double_blocks.{i}.{stream}_attn.{linear}"]
    for i in range(config.num_single_blocks):
        qkv = TargetRows("transformer", f"single_blocks.{i}.linear1.weight", slice(0, 3 * config.hidden_size))
        table[f"single_blocks.{i}.processor.qkv_lora"] = (qkv,)
        table[f"single_blocks.{i}.processor.proj_lora"] = table[f"single_blocks.{i}.linear2"]
    return table


def text_modules(component: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[TargetRows, ...]]:
    """Linears and embeddings by transformers' names; for CLIP with and without `text_model`, and by old diffusers'
    names."""
    table: dict[str, tuple[TargetRows, ...]] = {}
    for weight, shape in shapes.items():
        if len(shape) != 2:
            continue
        targets = (TargetRows(component, weight, slice(0, shape[0])),)
        module = weight.removesuffix(".weight")
        for name in (module, module.removeprefix("text_model.")):
            table[name] = targets
            table[re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1_lora", name)] = targets
    return table
