"""The layouts that a model's parts come in: which part a file holds, and where in it each of our weights is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import KontextError
from .config import KontextConfig
from .diffusers_format import Source, half_sources, modulation_sources, transformer_sources
from .gguf_file import t5_names
from .networks import weight_shapes
from .weight_files import StoredWeight, WeightFile

Layout = Literal["native", "diffusers", "transformers", "llama.cpp"]

SIGNATURES: tuple[tuple[str, Layout, str], ...] = (
    ("transformer", "native", "double_blocks.0.img_attn.qkv.weight"),
    ("transformer", "diffusers", "transformer_blocks.0.attn.add_q_proj.weight"),
    ("vae", "native", "decoder.mid.block_1.norm1.weight"),
    ("vae", "diffusers", "decoder.mid_block.resnets.0.norm1.weight"),
    ("text_encoder", "transformers", "embeddings.token_embedding.weight"),
    ("text_encoder_2", "transformers", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ("text_encoder_2", "llama.cpp", "enc.blk.0.attn_q.weight"),
)
"""Component, layout, and a tensor that only this layout of this component has, behind any prefix."""

TITLES = {
    "transformer": "the transformer",
    "vae": "the autoencoder",
    "text_encoder": "CLIP",
    "text_encoder_2": "T5",
}

LORA_MARKS = (
    ".lora_A.",
    ".lora_B.",
    ".lora_down.",
    ".lora_up.",
    ".lora.down.",
    ".lora.up.",
    "_lora.",
    "_lora1.",
)

UNUSED = ("logit_scale", "text_projection", "text_projection.weight", "spiece_model", "position_ids")
"""Endings of what all-in-one files hold outside of every part, and no network of ours needs."""


@dataclass(frozen=True)
class Part:
    """One component of a model in its files: `tensors` by the layout's own names, any prefix taken off."""

    component: str
    layout: Layout
    where: str
    tensors: Mapping[str, StoredWeight]


def parts_of(file: WeightFile) -> dict[str, Part]:
    """What `file` holds, by component.

    Raises:
        KontextError: nothing of FLUX.1 Kontext, one component twice, or something else besides.
    """
    found: dict[str, tuple[Layout, str]] = {}
    for name in file.tensors:
        for component, layout, signature in SIGNATURES:
            prefix = name.removesuffix(signature)
            if prefix != name and (not prefix or prefix.endswith(".")):
                if component in found:
                    raise KontextError(f"{file.path} holds {TITLES[component]} twice, the second at {name}")
                found[component] = (layout, prefix)
    if not found:
        raise KontextError(f"{file.path} {describe_stranger(file.tensors)}")
    # The longest prefix first, so that a part without one takes what is left.
    order = sorted(found, key=lambda component: -len(found[component][1]))
    sorted_tensors: dict[str, dict[str, StoredWeight]] = {component: {} for component in found}
    for name, tensor in file.tensors.items():
        owner = next((component for component in order if name.startswith(found[component][1])), None)
        if owner is not None:
            sorted_tensors[owner][name[len(found[owner][1]) :]] = tensor
        elif not name.endswith(UNUSED):
            raise KontextError(f"{file.path}: tensor {name} belongs to no part of FLUX.1 Kontext")
    return {
        component: Part(component, layout, str(file.path), sorted_tensors[component])
        for component, (layout, _) in found.items()
    }


def describe_stranger(names: Iterable[str]) -> str:
    listed = list(names)
    if any(mark in name for name in listed for mark in LORA_MARKS):
        return "is a LoRA: name the model it is for, and give it with --lora"
    examples = ", ".join(listed[:3]) or "none"
    return f"holds no part of FLUX.1 Kontext that we know; its first tensors: {examples}"


def network_sources(
    name: str,
    config: KontextConfig,
    layout: Layout = "diffusers",
    available: Mapping[str, object] | None = None,
) -> dict[str, Source]:
    """Native name → tensors of the file, for one of our networks.

    Args:
        name: the network.
        config: the model's sizes.
        layout: the component's; text encoders take "diffusers" for "transformers", which they are in its folders.
        available: names of the file, which decide between the spellings that text encoders come in.
    """
    if name in ("vae_encoder", "vae_decoder"):
        half = name.removeprefix("vae_")
        if layout == "native":
            return {key: Source((f"{half}.{key}",)) for key in weight_shapes(name, config)}
        return half_sources(half, config.autoencoder)
    if name in ("transformer", "modulation") and layout == "diffusers":
        sources = transformer_sources if name == "transformer" else modulation_sources
        return sources(config.transformer)
    own = {key: Source((key,)) for key in weight_shapes(name, config)}
    if layout == "llama.cpp":
        theirs = {ours: name for name, ours in t5_names(config.text_encoder_2.num_layers).items()}
        return {key: Source((theirs.get(key, key),)) for key in own}
    if name == "text_encoder" and available is not None and "embeddings.token_embedding.weight" in available:
        return {key: Source((key.removeprefix("text_model."),)) for key in own}
    if name == "text_encoder_2" and available is not None and "shared.weight" not in available:
        own["shared.weight"] = Source(("encoder.embed_tokens.weight",))
    return own
