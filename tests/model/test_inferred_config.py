"""Sizes inferred from shapes alone: FLUX.1 Kontext's in every layout, and tensors that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.model.config import KontextConfig
from kontext.model.inferred_config import infer_autoencoder, infer_clip, infer_t5, infer_transformer
from kontext.model.layouts import ComponentWeights, Layout, network_sources
from kontext.model.networks import NETWORKS, weight_shapes

FLUX = KontextConfig()


@dataclass(frozen=True)
class Shape:
    """A tensor of which only the shape is known."""

    shape: tuple[int, ...]


def component(name: str, layout: Layout) -> ComponentWeights:
    """A component's tensors, named as in `layout`. Those that are fused in native weights have the right first rows."""
    tensors: dict[str, Any] = {}
    for network, owner in NETWORKS.items():
        if owner == name:
            shapes = weight_shapes(network, FLUX)
            for weight, source in network_sources(network, FLUX, layout).items():
                tensors.update(dict.fromkeys(source.parts, Shape(shapes[weight])))
    return ComponentWeights(name, layout, "a.safetensors", tensors)


INFERRED: dict[str, tuple[Callable[[ComponentWeights], object], object]] = {
    "transformer": (infer_transformer, FLUX.transformer),
    "vae": (infer_autoencoder, FLUX.autoencoder),
    "text_encoder": (infer_clip, FLUX.text_encoder),
    "text_encoder_2": (infer_t5, FLUX.text_encoder_2),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("transformer", "native"),
        ("transformer", "diffusers"),
        ("vae", "native"),
        ("vae", "diffusers"),
        ("text_encoder", "transformers"),
        ("text_encoder_2", "transformers"),
        ("text_encoder_2", "llama.cpp"),
    ],
)
def test_flux_is_inferred_in_every_layout(name: str, layout: Layout) -> None:
    infer, expected = INFERRED[name]
    assert infer(component(name, layout)) == expected


FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no blocks' norms": (
        "transformer",
        lambda t: t.pop("double_blocks.0.img_attn.norm.query_norm.scale"),
        "a.safetensors lacks tensor double_blocks.0.img_attn.norm.query_norm.scale",
    ),
    "three dimensions": (
        "transformer",
        lambda t: t.update({"txt_in.weight": Shape((3, 4, 5))}),
        r"tensor txt_in.weight is \[3, 4, 5\], expected 2 dimensions",
    ),
    "odd heads": (
        "transformer",
        lambda t: t.update({"double_blocks.0.img_attn.norm.query_norm.scale": Shape((100,))}),
        "head size 100 is not a multiple of 16",
    ),
    "a missing block": (
        "transformer",
        lambda t: [t.pop(name) for name in list(t) if name.startswith("single_blocks.7.")],
        r"some of its blocks single_blocks\.… are missing",
    ),
    "another autoencoder": (
        "vae",
        lambda t: t.update({"decoder.conv_in.weight": Shape((512, 4, 3, 3))}),
        "is not FLUX.1's autoencoder .* name its diffusers folder with --base",
    ),
    "T5 without buckets": (
        "text_encoder_2",
        lambda t: t.update(
            {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": Shape((2, 64))}
        ),
        "T5 has 2 buckets for its distances, expected 4 to 511",
    ),
    "another CLIP": (
        "text_encoder",
        lambda t: t.update({"text_model.embeddings.token_embedding.weight": Shape((49408, 700))}),
        "CLIP's hidden size 700 is not a multiple of 64",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_clear_error(fault: str) -> None:
    name, change, message = FAULTS[fault]
    layout: Layout = "native" if name in ("transformer", "vae") else "transformers"
    part = component(name, layout)
    change(part.tensors)  # type: ignore[arg-type]
    with pytest.raises(KontextError, match=message) as caught:
        INFERRED[name][0](part)
    assert re.match("a.safetensors", str(caught.value))
