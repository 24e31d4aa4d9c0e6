"""What the names in a LoRA's file tell: rows of which native weight, which kind of adapter, how many steps.

Every trainer has names of its own for the same linear; here they are all in tables.
Tables are keyed with underscores for dots, which is how kohya's scripts spell names; nothing collides in
that form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from .config import TransformerConfig
from .diffusers_format import modulation_sources, transformer_sources

Part = Literal["down", "up", "bias", "alpha", "diff", "diff_b", "norm"]
"""What a tensor is to its module: a factor, the bias of the up factor, alpha, a whole difference of weight or
bias (ComfyUI's), or a norm to put in the model's place."""

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
"""Component → what may stand before the names of its modules."""

TENSOR_NAME = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<down>(?:lora_A(?:\.[^.]+)?|lora_down|(?:lora\.|lora_linear_layer\.)?down)\.weight)|"
    r"(?P<up>(?:lora_B(?:\.[^.]+)?|lora_up|(?:lora\.|lora_linear_layer\.)?up)\.weight)|"
    r"(?P<bias>lora_B(?:\.[^.]+)?\.bias)|"
    r"(?P<alpha>alpha)|(?P<diff>diff)|(?P<diff_b>diff_b))"
)
"""PEFT writes lora_A, with or without an adapter's name behind it; kohya lora_down; old diffusers lora.down
and lora_linear_layer.down; XLabs down alone, its module ending in _lora."""


OTHER_KINDS = {
    "dora_scale": "a DoRA (weight-decomposed)",
    "lora_magnitude_vector": "a DoRA (weight-decomposed)",
    "hada_": "a LoHa (Hadamard product)",
    "lokr_": "a LoKr (Kronecker product)",
    "lora_mid": "a convolution LoRA (LoCon)",
}
"""Parts of tensor names that tell adapters which are not W + up @ down."""

GENERIC_NAMES = ("diffusion_pytorch_model", "pytorch_lora_weights", "adapter_model", "lora")
"""File names that say nothing: the folder has the LoRA's name."""


@dataclass(frozen=True)
class Target:
    """Output rows of a native weight."""

    network: str
    weight: str
    rows: slice

    @property
    def bias(self) -> str:
        return self.weight.removesuffix("weight") + "bias"


def split_name(tensor: str) -> tuple[str, Part]:
    """A tensor's name → its module, still with its prefix, and what it is there. Any other name is taken for
    a norm."""
    match = TENSOR_NAME.fullmatch(tensor)
    return (match["module"], cast(Part, match.lastgroup)) if match else (tensor, "norm")


def resolve(
    module: str, tables: Mapping[str, Mapping[str, tuple[Target, ...]]]
) -> tuple[str, str, tuple[Target, ...]] | None:
    """Component, name without prefix, and targets of a module as a trainer spells it."""
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
) -> dict[str, dict[str, tuple[Target, ...]]]:
    """Component → flattened module name → where the module's output rows go, in order.

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
) -> dict[str, tuple[Target, ...]]:
    """Linears in Black Forest Labs' names, in diffusers' and in XLabs'; norms by their whole names."""
    table: dict[str, tuple[Target, ...]] = {}
    sizes = [config.hidden_size] * 3 + [config.mlp_size]
    networks = {"transformer": transformer_sources(config), "modulation": modulation_sources(config)}
    for network, sources in networks.items():
        for weight, source in sources.items():
            if weight.endswith(".bias"):
                continue
            height = shapes[network][weight][0]
            whole = Target(network, weight, slice(0, height))
            if weight.endswith(".scale"):
                table.update(dict.fromkeys((weight, *source.parts), (whole,)))
                continue
            table[weight.removesuffix(".weight")] = (whole,)
            modules = [part.removesuffix(".weight") for part in source.parts]
            if (
                source.join == "swap_halves"
            ):  # diffusers' rows are (scale, shift), the native ones (shift, scale)
                halves = slice(height // 2, height), slice(0, height // 2)
                table[modules[0]] = tuple(Target(network, weight, half) for half in halves)
                continue
            start = 0
            for module, size in zip(modules, sizes if len(modules) > 1 else [height], strict=False):
                table[module] = (Target(network, weight, slice(start, start + size)),)
                start += size
    for i in range(config.num_double_blocks):
        for stream, number in (("img", 1), ("txt", 2)):
            for linear in ("qkv", "proj"):
                xlabs = f"double_blocks.{i}.processor.{linear}_lora{number}"
                table[xlabs] = table[f"double_blocks.{i}.{stream}_attn.{linear}"]
    for i in range(config.num_single_blocks):
        qkv = Target("transformer", f"single_blocks.{i}.linear1.weight", slice(0, 3 * config.hidden_size))
        table[f"single_blocks.{i}.processor.qkv_lora"] = (qkv,)
        table[f"single_blocks.{i}.processor.proj_lora"] = table[f"single_blocks.{i}.linear2"]
    return table


def text_modules(component: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Target, ...]]:
    """Linears and embeddings in transformers' names; of CLIP also in those before and after its
    `text_model`."""
    table: dict[str, tuple[Target, ...]] = {}
    for weight, shape in shapes.items():
        if len(shape) != 2:
            continue
        targets = (Target(component, weight, slice(0, shape[0])),)
        module = weight.removesuffix(".weight")
        for name in (module, module.removeprefix("text_model.")):
            table[name] = targets
            table[re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1_lora", name)] = targets
    return table


def guess_steps(path: Path, metadata: Mapping[str, object]) -> int | None:
    """Sampling steps from the names that a LoRA goes by; numbers over 16 count training steps."""
    names = [path.stem]
    if path.stem in GENERIC_NAMES:
        names += [path.parent.name, *(part for part in path.parts if part.startswith("models--"))]
    names += [str(metadata.get(key, "")) for key in ("modelspec.title", "ss_output_name")]
    for name in names:
        found = re.search(r"(?<![\d.])(\d{1,2})[-_ ]?steps?(?![a-z])", name, re.IGNORECASE)
        if found and 1 <= int(found[1]) <= 16:
            return int(found[1])
        if re.search(r"turbo[-_ ]?alpha", name, re.IGNORECASE):
            return 8
    return None
