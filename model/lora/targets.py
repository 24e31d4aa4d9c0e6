"""Where a module of a LoRA file is in the model: component, native weight and output rows.

Every trainer names the same linear differently; tables here hold all names. Their keys have underscores in place of
dots, as in kohya's scripts; no two names become equal by that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import TransformerConfig
from ..diffusers_format import modulation_sources, transformer_sources

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
        "lycoris_",
        "pipe.dit.",
    ),
    "text_encoder": ("text_encoder.", "text_encoders.clip_l.transformer.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "text_encoders.t5xxl.transformer.", "lora_te2_", "lora_te3_"),
}
"""Component → prefixes that names of its modules may have."""

# DiffSynth-Studio's name → Black Forest Labs' or, where it has parts of a fused linear, diffusers'.
DIFFSYNTH = {
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "time_embedder.timestep_embedder.0": "time_in.in_layer",
    "time_embedder.timestep_embedder.2": "time_in.out_layer",
    "guidance_embedder.timestep_embedder.0": "guidance_in.in_layer",
    "guidance_embedder.timestep_embedder.2": "guidance_in.out_layer",
    "pooled_text_embedder.0": "vector_in.in_layer",
    "pooled_text_embedder.2": "vector_in.out_layer",
    "final_norm_out.linear": "final_layer.adaLN_modulation.1",
    "final_proj_out": "final_layer.linear",
}
DIFFSYNTH_DOUBLE = {
    "attn.a_to_qkv": "double_blocks.{}.img_attn.qkv",
    "attn.b_to_qkv": "double_blocks.{}.txt_attn.qkv",
    "attn.a_to_out": "double_blocks.{}.img_attn.proj",
    "attn.b_to_out": "double_blocks.{}.txt_attn.proj",
    "attn.norm_q_a": "double_blocks.{}.img_attn.norm.query_norm",
    "attn.norm_k_a": "double_blocks.{}.img_attn.norm.key_norm",
    "attn.norm_q_b": "double_blocks.{}.txt_attn.norm.query_norm",
    "attn.norm_k_b": "double_blocks.{}.txt_attn.norm.key_norm",
    "ff_a.0": "double_blocks.{}.img_mlp.0",
    "ff_a.2": "double_blocks.{}.img_mlp.2",
    "ff_b.0": "double_blocks.{}.txt_mlp.0",
    "ff_b.2": "double_blocks.{}.txt_mlp.2",
    "norm1_a.linear": "double_blocks.{}.img_mod.lin",
    "norm1_b.linear": "double_blocks.{}.txt_mod.lin",
    **{f"attn.a_to_{part}": f"transformer_blocks.{{}}.attn.to_{part}" for part in "qkv"},
    **{f"attn.b_to_{part}": f"transformer_blocks.{{}}.attn.add_{part}_proj" for part in "qkv"},
}
DIFFSYNTH_SINGLE = {
    "to_qkv_mlp": "single_blocks.{}.linear1",
    "proj_out": "single_blocks.{}.linear2",
    "norm.linear": "single_blocks.{}.modulation.lin",
    "norm_q_a": "single_blocks.{}.norm.query_norm",
    "norm_k_a": "single_blocks.{}.norm.key_norm",
    "proj_in_besides_attn": "single_transformer_blocks.{}.proj_mlp",
    **{f"a_to_{part}": f"single_transformer_blocks.{{}}.attn.to_{part}" for part in "qkv"},
}


@dataclass(frozen=True)
class TargetRows:
    """Output rows of a native weight."""

    network: str
    weight: str
    rows: slice

    @property
    def bias(self) -> str:
        return self.weight.removesuffix("weight") + "bias"


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
        tables[component] = text_modules(component, shapes.get(component, {}))
    return {
        component: {flatten(name): targets for name, targets in table.items()}
        for component, table in tables.items()
    }


def transformer_modules(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], config: TransformerConfig
) -> dict[str, tuple[TargetRows, ...]]:
    """Linears and norms by the names of Black Forest Labs, diffusers, XLabs and DiffSynth-Studio."""
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
                norms = [
                    weight.removesuffix(".scale"),
                    *(part.removesuffix(".weight") for part in source.parts),
                ]
                # ComfyUI names the difference of a norm after the parameter or after the module.
                names = [name + end for name in norms for end in ("", ".scale", ".weight")]
                table.update(dict.fromkeys(names, (whole,)))
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
    table.update({theirs: table[ours] for theirs, ours in DIFFSYNTH.items() if ours in table})
    for i in range(config.num_double_blocks):
        table.update(
            {f"blocks.{i}.{theirs}": table[ours.format(i)] for theirs, ours in DIFFSYNTH_DOUBLE.items()}
        )
    for i in range(config.num_single_blocks):
        table.update(
            {
                f"single_blocks.{i}.{theirs}": table[ours.format(i)]
                for theirs, ours in DIFFSYNTH_SINGLE.items()
            }
        )
    return table


def text_modules(component: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[TargetRows, ...]]:
    """Linears, embeddings and norms by transformers' names; for CLIP with and without `text_model`, and by old
    diffusers' names."""
    table: dict[str, tuple[TargetRows, ...]] = {}
    for weight, shape in shapes.items():
        if not weight.endswith(".weight"):
            continue
        targets = (TargetRows(component, weight, slice(0, shape[0])),)
        module = weight.removesuffix(".weight")
        for name in (module, module.removeprefix("text_model.")):
            table[name] = targets
            table[re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1_lora", name)] = targets
    return table
