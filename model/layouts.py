"""Layouts of weight files: which components a file holds, and which of its tensors make up each native weight."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import KontextError
from .config import KontextConfig
from .diffusers_format import Source, half_sources, modulation_sources, transformer_sources
from .gguf_file import t5_names
from .ignored import kind_of, kind_within
from .lora.names import is_lora
from .networks import weight_shapes
from .spellings import native_norms, transformers_clip
from .stored_weight import StoredWeight
from .weight_files import WeightFile

Layout = Literal["native", "diffusers", "transformers", "OpenAI", "llama.cpp"]

SIGNATURES: tuple[tuple[str, Layout, str], ...] = (
    ("transformer", "native", "double_blocks.0.img_attn.qkv.weight"),
    ("transformer", "diffusers", "transformer_blocks.0.attn.add_q_proj.weight"),
    ("vae", "native", "decoder.mid.block_1.norm1.weight"),
    ("vae", "diffusers", "decoder.mid_block.resnets.0.norm1.weight"),
    ("text_encoder", "transformers", "embeddings.token_embedding.weight"),
    ("text_encoder", "OpenAI", "ln_final.weight"),
    ("text_encoder_2", "transformers", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ("text_encoder_2", "llama.cpp", "enc.blk.0.attn_q.weight"),
)
"""Component, layout, and a tensor that only this layout of this component has, after any prefix."""

TITLES = {
    "transformer": "the transformer",
    "vae": "the autoencoder",
    "text_encoder": "CLIP",
    "text_encoder_2": "T5",
}


@dataclass(frozen=True)
class ComponentWeights:
    """One component of a model in its files: `tensors` by the layout's names, without prefix; OpenAI's CLIP has
    transformers'. `ignored` counts unused tensors by kind."""

    component: str
    layout: Layout
    where: str
    tensors: Mapping[str, StoredWeight]
    ignored: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def sort(
        cls, component: str, layout: Layout, where: str, tensors: Mapping[str, StoredWeight]
    ) -> ComponentWeights:
        """A component from tensors with any spelling of its names, among them unused ones.

        Raises:
            KontextError: a weight is there twice, or cannot be taken apart.
        """
        ignored: Counter[str] = Counter()
        used = {}
        for name, tensor in tensors.items():
            kind = kind_within(component, name, tensors)
            if kind is None:
                used[name] = tensor
            else:
                ignored[kind] += 1
        if layout == "OpenAI":
            used = transformers_clip(used)
        elif (component, layout) == ("transformer", "native"):
            used = native_norms(used)
        return cls(component, layout, where, used, ignored)


def components_of(file: WeightFile) -> dict[str, ComponentWeights]:
    """The components in `file`.

    Raises:
        KontextError: it holds nothing of FLUX.1 Kontext, one component twice, or other tensors.
    """
    found: dict[str, tuple[Layout, str]] = {}
    for name in (name for name in file.tensors if kind_of(name) is None):
        for component, layout, signature in SIGNATURES:
            prefix = name.removesuffix(signature)
            if prefix != name and (not prefix or prefix.endswith(".")):
                if component in found:
                    raise KontextError(f"{file.path} holds {TITLES[component]} twice, the second at {name}")
                found[component] = (layout, prefix)
    if not found:
        raise KontextError(f"{file.path} {describe_unknown(file.tensors)}")
    # The longest prefix first, so that a component without prefix gets the remaining tensors.
    order = sorted(found, key=lambda component: -len(found[component][1]))
    sorted_tensors: dict[str, dict[str, StoredWeight]] = {component: {} for component in found}
    outside: dict[str, Counter[str]] = {component: Counter() for component in found}
    for name, tensor in file.tensors.items():
        owner = next((component for component in order if name.startswith(found[component][1])), None)
        if owner is not None:
            sorted_tensors[owner][name[len(found[owner][1]) :]] = tensor
            continue
        whose = next((component for component in found if kind_of(name, [component])), None)
        if whose is None:
            raise KontextError(f"{file.path}: tensor {name} belongs to no component of FLUX.1 Kontext")
        outside[whose][str(kind_of(name, [whose]))] += 1
    result = {}
    for component, (layout, _) in found.items():
        part = ComponentWeights.sort(component, layout, str(file.path), sorted_tensors[component])
        result[component] = dataclasses.replace(part, ignored=outside[component] + Counter(part.ignored))
    return result


def describe_unknown(names: Iterable[str]) -> str:
    listed = list(names)
    if is_lora(listed):
        return "is a LoRA: name its model, and add the LoRA with --lora"
    examples = ", ".join(listed[:3]) or "none"
    return f"holds no component of FLUX.1 Kontext; its first tensors: {examples}"


def network_sources(
    name: str,
    config: KontextConfig,
    layout: Layout = "diffusers",
    available: Mapping[str, object] | None = None,
) -> dict[str, Source]:
    """Native name → tensors of the file, for one network.

    Args:
        name: the network.
        config: the model's sizes.
        layout: the component's. For text encoders, "diffusers" means "transformers", which its folders contain.
        available: the file's tensors, by which the variants of text encoders' names are told apart.
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
