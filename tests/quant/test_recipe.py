"""Recipes: what the flags stand for, and that the first rule decides."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from kontext.quant.formats import FORMATS
from kontext.quant.recipe import ANY_QUANTIZED, BIG_MODEL, Layer, Recipe, Rule, choose_recipe

NETWORKS = ("text_encoder", "text_encoder_2", "vae_encoder", "vae_decoder", "modulation", "transformer")


@pytest.mark.parametrize(
    ("parameters", "compute", "fp8", "expected"),
    [
        (7_000_000, None, False, ("fp32", "fp32", "fp32")),
        (BIG_MODEL, None, False, ("bf16", "bf16", "bf16")),
        (7_000_000, None, True, ("fp8", "fp32", "fp32")),
        (BIG_MODEL, None, True, ("fp8", "bf16", "bf16")),
        (7_000_000, "bf16", True, ("fp8", "bf16", "bf16")),
        (7_000_000, "fp16", False, ("fp16", "fp16", "fp32")),
        (BIG_MODEL, "fp16", True, ("fp8", "fp16", "fp32")),
        (BIG_MODEL, "fp32", False, ("fp32", "fp32", "fp32")),
    ],
)
def test_flags(parameters: int, compute: str | None, fp8: bool, expected: tuple[str, str, str]) -> None:
    """Weights, the transformer's compute, T5's compute: T5 leaves the range of fp16, and what needs
    fp16 (Turing, ONNX Runtime's CPU) has no bf16."""
    recipe = choose_recipe(NETWORKS, parameters, compute, "fp8" if fp8 else None)
    assert (recipe.weights, recipe.compute["transformer"], recipe.compute["text_encoder_2"]) == expected
    assert set(recipe.compute) == set(NETWORKS)


@pytest.mark.parametrize(
    ("network", "weight", "linear", "expected"),
    [
        ("transformer", "double_blocks.0.img_attn.qkv.weight", True, "fp8"),
        ("transformer", "single_blocks.37.linear2.weight", True, "fp8"),
        ("transformer", "single_blocks.37.linear2.bias", False, "bf16"),
        ("transformer", "double_blocks.0.img_attn.norm.key_norm.scale", False, "bf16"),
        ("transformer", "img_in.weight", True, "bf16"),
        ("transformer", "txt_in.weight", True, "bf16"),
        ("transformer", "final_layer.linear.weight", True, "bf16"),
        ("modulation", "double_blocks.0.img_mod.lin.weight", True, "fp8"),
        ("modulation", "final_layer.adaLN_modulation.1.weight", True, "bf16"),
        ("modulation", "time_in.in_layer.weight", True, "bf16"),
        ("modulation", "guidance_in.out_layer.weight", True, "bf16"),
        ("modulation", "vector_in.in_layer.weight", True, "bf16"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight", True, "fp8"),
        ("text_encoder", "text_model.embeddings.token_embedding.weight", False, "bf16"),
        ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q.weight", True, "fp8"),
        ("vae_decoder", "mid.attn_1.q.weight", True, "bf16"),
        ("vae_encoder", "conv_in.weight", False, "bf16"),
    ],
)
def test_what_fp8_spares(network: str, weight: str, linear: bool, expected: str) -> None:
    recipe = choose_recipe(NETWORKS, BIG_MODEL, None, "fp8")
    assert recipe.layer_of(network, weight, (64, 64), linear) == Layer(expected)


def test_the_first_rule_decides() -> None:
    recipe = Recipe(
        "fp8", {"a": "fp32"}, (Rule("a", "x.*", "fp8"), Rule("*", "*", "compute"), Rule("a", "y", "fp8"))
    )
    formats = [recipe.layer_of("a", name, (64, 64), True).format for name in ("x.1", "y", "z")]
    assert formats == ["fp8", "fp32", "fp32"]
    assert recipe.layer_of("a", "x.1", (64, 64), True) == Layer("fp8", rank=0)
    assert recipe.layer_of("a", "x.1", (64, 64), False) == Layer("fp32")


def test_int4_is_for_whole_groups() -> None:
    recipe = choose_recipe(NETWORKS, 1, None, "int4")
    layers = [recipe.layer_of("transformer", "x", shape, True) for shape in ((128, 64), (96, 64), (64, 63))]
    assert layers == [Layer("int4"), Layer("fp32"), Layer("fp32")]


def test_ranks_are_given_or_follow_the_size() -> None:
    rules = (Rule("*", "given", "int4", rank=24), Rule("*", "*", "int4", rank=None))
    recipe = Recipe("int4", {"transformer": "bf16"}, rules)

    def rank(weight: str, shape: tuple[int, int]) -> int:
        return recipe.layer_of("transformer", weight, shape, True).rank

    assert rank("given", (192, 576)) == 24
    assert rank("given", (64, 16)) == 16  # no more than the weight has
    assert [rank("x", shape) for shape in ((192, 576), (3072, 3072), (3072, 9216), (15360, 3072))] == [
        0,
        16,
        32,
        32,
    ]
    # Numbers of a branch cost what the network computes in: 4 bytes each allow half the rank of 2.
    for compute, side in (("fp32", 4096), ("fp16", 2048), ("bf16", 2048)):
        branched = Recipe("int4", {"transformer": compute}, rules)
        ranks = [branched.layer_of("transformer", "x", (rows, side), True).rank for rows in (side, side - 64)]
        assert ranks == [16, 0]


STATIC_INT8 = Layer("int8", 0, "int8", centred=True, rounding="static", scaled=True)
QKV, MODULATION, DOWN = (
    "double_blocks.0.img_attn.qkv.weight",
    "double_blocks.0.img_mod.lin.weight",
    "img_mlp.2.weight",
)


@pytest.mark.parametrize(
    ("quantization", "options", "qkv", "down", "modulation"),
    [
        ("int8", {}, Layer("int8", 0, "int8"), Layer("int8", 0, "int8"), Layer("int8", 0, "int8")),
        (
            "int8",
            {"calibrated": True},
            Layer("int8", 0, "int8", centred=True),
            Layer("int8", 0, "int8"),
            Layer("int8", 0, "int8", centred=True),
        ),
        (
            "int8",
            {"calibrated": True, "static_inputs": True},
            STATIC_INT8,
            STATIC_INT8,
            Layer("int8"),
        ),
        ("int8", {"static_inputs": True}, Layer("int8"), Layer("int8"), Layer("int8")),
        (
            "fp8",
            {"calibrated": True, "static_inputs": True},
            Layer("fp8", 0, "fp8", centred=True),
            Layer("fp8", 0, "fp8"),
            Layer("fp8"),
        ),
        ("int8", {"calibrated": True, "weight_only": True}, Layer("int8"), Layer("int8"), Layer("int8")),
        ("fp8", {}, Layer("fp8"), Layer("fp8"), Layer("fp8")),
        (
            "fp8",
            {"calibrated": True},
            Layer("fp8", 0, "fp8", centred=True),
            Layer("fp8", 0, "fp8"),
            Layer("fp8"),
        ),
        ("fp8", {"calibrated": True, "weight_only": True}, Layer("fp8"), Layer("fp8"), Layer("fp8")),
        ("int4", {"calibrated": True}, Layer("int4"), Layer("int4"), Layer("int4")),
        (
            "nvfp4",
            {"calibrated": True},
            Layer("nvfp4", 0, "nvfp4", centred=True),
            Layer("nvfp4", 0, "nvfp4"),
            Layer("nvfp4"),
        ),
        ("nvfp4", {}, Layer("nvfp4"), Layer("nvfp4"), Layer("nvfp4")),
        (
            "nvfp4",
            {"calibrated": True, "weight_only": True},
            Layer("nvfp4"),
            Layer("nvfp4"),
            Layer("nvfp4"),
        ),
        ("int4", {"rank": 8}, Layer("int4", 8), Layer("int4", 8), Layer("int4", 8)),
        (None, {}, Layer("bf16"), Layer("bf16"), Layer("bf16")),
    ],
)
def test_what_inputs_are_rounded_to(
    quantization: str | None, options: dict[str, Any], qkv: Layer, down: Layer, modulation: Layer
) -> None:
    """Static scales and centring need statistics; after a GELU, whose mean is small, nothing is centred."""
    recipe = choose_recipe(NETWORKS, 1, "bf16", quantization, **options)
    found = [
        recipe.layer_of(network, weight, (64, 64), True)
        for network, weight in (
            ("transformer", QKV),
            ("transformer", f"double_blocks.1.{DOWN}"),
            ("modulation", MODULATION),
        )
    ]
    assert found == [qkv, down, modulation]
    assert bool(recipe.rules) is (quantization is not None)


def test_attention_is_rounded_where_that_is_wanted() -> None:
    assert choose_recipe(NETWORKS, 1, "bf16", "fp8", calibrated=True).attention == ""
    assert choose_recipe(NETWORKS, 1, "bf16", "fp8", calibrated=True, fp8_attention=True).attention == "fp8"


@pytest.mark.parametrize(
    ("layer", "entry"),
    [
        (Layer("fp8"), "fp8"),
        (Layer("int4", 8), {"format": "int4", "rank": 8}),
        (
            Layer("int8", 0, "int8", centred=True),
            {"format": "int8", "activations": "int8", "centred": True},
        ),
        (
            Layer("int8", 0, "int8", True, "static", True),
            {"format": "int8", "activations": "int8", "centred": True, "rounding": "static", "scaled": True},
        ),
    ],
)
def test_layers_as_the_manifest_has_them(layer: Layer, entry: object) -> None:
    assert layer.as_json() == entry
    assert Layer.from_json(entry) == layer  # type: ignore[arg-type]


def test_recipes_are_data() -> None:
    recipe = choose_recipe(NETWORKS, 1, None, "fp8")
    assert json.loads(json.dumps(recipe.as_json()))["rules"][-1] == {
        "network": "*",
        "weight": "*",
        "format": "fp8",
        "rank": 0,
        "activations": "",
        "centred": False,
    }
    assert recipe.digest() == choose_recipe(NETWORKS, 1, "fp32", "fp8").digest()
    assert recipe.digest() != choose_recipe(NETWORKS, 1, "fp32").digest()
    turned = dataclasses.replace(recipe, compute=dict(reversed(recipe.compute.items())))
    assert recipe.digest() == turned.digest()


@pytest.mark.parametrize("name", FORMATS)
def test_what_stands_for_any_quantized_format(name: str) -> None:
    """Oracle: every format's own `fits`, on shapes of linears that groups and packing do and do not divide."""
    shapes = [(rows, columns) for rows in (1, 3, 16, 63, 64, 192) for columns in (1, 2, 7, 16, 129)]
    for shape in [*shapes, (64,), (3, 3, 16, 64)]:
        assert not FORMATS[name].fits(shape) or FORMATS[ANY_QUANTIZED].fits(shape), shape
