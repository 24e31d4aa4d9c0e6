"""Recipes in files: what they say, and every way to get them wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.quant.recipe import SPARED, Layer, choose_recipe
from kontext.quant.recipe_file import check_patterns, read_recipe

NETWORKS = ("transformer", "modulation")
BF16 = dict.fromkeys(NETWORKS, "bf16")


def write(folder: Path, data: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_the_first_rule_that_matches_wins(tmp_path: Path) -> None:
    rules = [
        {"network": "transformer", "weight": "*.0.*", "format": "compute"},
        {"network": "transformer", "weight": "single_blocks.*", "format": "int4", "rank": "auto"},
        {"weight": "double_*", "format": "fp8", "activations": "fp8"},
    ]
    recipe = read_recipe(write(tmp_path, {"rules": rules}), BF16)
    assert recipe.weights == "mine"
    assert recipe.compute == BF16
    shape = (3072, 9216)
    assert recipe.layer_of("transformer", "double_blocks.0.img_mlp.0.weight", shape, True) == Layer("bf16")
    assert recipe.layer_of("transformer", "single_blocks.1.linear1.weight", shape, True) == Layer("int4", 32)
    assert recipe.layer_of("modulation", "double_blocks.1.img_mod.lin.weight", shape, True) == Layer(
        "fp8", 0, "fp8"
    )
    assert recipe.layer_of("transformer", "img_in.weight", shape, True) == Layer("bf16")  # spared


def test_what_is_spared_can_be_taken(tmp_path: Path) -> None:
    data = {"spare": False, "compute": "fp16", "rules": [{"format": "int8"}]}
    recipe = read_recipe(write(tmp_path, data), BF16)
    assert recipe.layer_of("transformer", "img_in.weight", (64, 64), True) == Layer("int8")
    assert recipe.compute["transformer"] == "fp16"


def test_a_bundles_recipe_is_one(tmp_path: Path) -> None:
    for recipe in (
        choose_recipe(NETWORKS, 1, "bf16", "int4", None),
        choose_recipe(NETWORKS, 1, "bf16", "int8", calibrated=True, static_inputs=True),
    ):
        again = read_recipe(write(tmp_path, recipe.as_json()), BF16)
        assert again.rules == (*SPARED, *recipe.rules)


def test_the_usual_rounding_is_not_noted(tmp_path: Path) -> None:
    for format, rounding in (("int8", "dynamic"), ("fp8", "static"), ("nvfp4", "blocks")):
        rule = {"format": format, "activations": format, "rounding": rounding}
        (read,) = read_recipe(write(tmp_path, {"spare": False, "rules": [rule]}), BF16).rules
        assert read.rounding == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[", "is not JSON"),
        ([], "expected an object with rules"),
        ({}, "at least one rule"),
        ({"rules": []}, "at least one"),
        ({"rules": [{"format": "int3"}]}, "rule 1: format is 'int3', expected fp8, int8, int4.* or compute"),
        (
            {"rules": [{"format": "int8"}, {"format": "int8", "wieght": "x"}]},
            "rule 2: unknown field 'wieght'",
        ),
        ({"rules": [{"format": "int4", "rank": -1}]}, "rank is -1"),
        ({"rules": [{"format": "int4", "rank": True}]}, "rank is True"),
        ({"rules": [{"format": "fp8", "activations": "int3"}]}, "activations is 'int3'"),
        (
            {"rules": [{"format": "fp8", "activations": "int8"}]},
            "int8 activations need int8 or int4 weights, and these are fp8",
        ),
        ({"rules": [3]}, "rule 1 is not an object"),
        ({"rules": [{"format": "int8", "weight": 3}]}, "names or patterns"),
        ({"rules": [{"format": "int8"}], "spare": 1}, "spare must be true or false"),
        ({"rules": [{"format": "int8"}], "compute": "int8"}, "compute of transformer is 'int8'"),
        (
            {"rules": [{"format": "int8"}], "compute": {"transformer": "bf16"}},
            "one of them for each of transformer, modulation",
        ),
        ({"rules": [{"format": "int8", "centred": 1}]}, "centred must be true or false"),
        ({"rules": [{"format": "int8"}], "attention": "int8"}, "attention is 'int8'"),
        ({"rulez": []}, "unknown field 'rulez'"),
        ({"rules": [{"format": "int8", "rounding": "static"}]}, "there are no activations"),
        (
            {"rules": [{"format": "int8", "activations": "int8", "rounding": 3}]},
            "rounding is 3, expected dynamic or static",
        ),
        (
            {"rules": [{"format": "fp8", "activations": "fp8", "rounding": "dynamic"}]},
            "rounding is 'dynamic', expected static",
        ),
        (
            {"rules": [{"format": "nvfp4", "activations": "nvfp4", "rounding": "static"}]},
            "rounding is 'static', expected blocks",
        ),
        ({"rules": [{"format": "int8", "scaled": 1}]}, "scaled must be true or false"),
        (
            {"rules": [{"format": "int8", "activations": "int8", "scaled": True}]},
            "scaled only applies with activations that have a scale from calibration",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        read_recipe(write(tmp_path, data), BF16)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="cannot read"):
        read_recipe(tmp_path / "none.json", BF16)


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    for size, message in ((16 << 20, "is not JSON"), ((16 << 20) + 1, "is larger than 16 MiB: not a recipe")):
        with path.open("wb") as file:
            file.truncate(size)  # a hole on the disk
        with pytest.raises(KontextError, match=message):
            read_recipe(path, BF16)


@pytest.mark.parametrize(
    ("rank", "meant"), [(0, 0), (512, 512), ("auto", None), (None, None), (513, ...), (1.0, ...)]
)
def test_ranks(tmp_path: Path, rank: object, meant: object) -> None:
    path = write(tmp_path, {"rules": [{"format": "int4", "rank": rank}]})
    if meant is ...:
        with pytest.raises(KontextError, match="expected auto or a number from 0 to 512"):
            read_recipe(path, BF16)
    else:
        assert read_recipe(path, BF16).rules[-1].rank == meant


def test_attention_may_be_rounded(tmp_path: Path) -> None:
    for entry, meant in (({}, ""), ({"attention": ""}, ""), ({"attention": "fp8"}, "fp8")):
        path = write(tmp_path, {"rules": [{"format": "fp8"}], **entry})
        assert read_recipe(path, BF16).attention == meant


def test_one_thing_to_compute_in(tmp_path: Path) -> None:
    path = write(tmp_path, {"compute": "fp16", "rules": [{"format": "int8"}]})
    with pytest.raises(KontextError, match="leave out --fp32"):
        read_recipe(path, BF16, fixed=True)


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    linears = {"transformer": {"single_blocks.0.linear1.weight"}, "modulation": {"time_in.in_layer.weight"}}
    good = read_recipe(write(tmp_path, {"rules": [{"weight": "single_*", "format": "int8"}]}), BF16)
    check_patterns(good, linears)
    for rule in (
        {"weight": "singel_*", "format": "int8"},
        {"network": "transformr", "format": "int8"},
        {"network": "modulation", "weight": "single_blocks.0.linear1.weight", "format": "int8"},
    ):
        bad = read_recipe(write(tmp_path, {"rules": [{"format": "int8"}, rule]}), BF16)
        with pytest.raises(KontextError, match=r"no layer of this model matches network .*, for example, "):
            check_patterns(bad, linears)
