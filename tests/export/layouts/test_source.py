"""The weights that layouts get: every one once, in diffusers' names too."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from kontext.export.layouts.source import WeightSource  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402


@pytest.mark.parametrize("component", sorted(set(NETWORKS.values())))
def test_the_parts_are_the_folders_own_tensors(tiny_checkpoint: Path, component: str) -> None:
    source = WeightSource(Checkpoint.open(tiny_checkpoint), choose_recipe(tuple(NETWORKS), 1, "fp32"))
    (path,) = (tiny_checkpoint / component).glob("*.safetensors")
    expected, found = load_file(path), {}
    for weight in source.weights(component):
        tensor = source.read(weight)
        assert tuple(tensor.shape) == weight.shape
        parts = weight.split(tensor)
        assert tuple(parts) == weight.diffusers_names
        assert tuple(tuple(part.shape) for part in parts.values()) == weight.diffusers_shapes
        found.update(parts)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_recipe_says_how_a_weight_is_stored(tiny_checkpoint: Path) -> None:
    recipe = choose_recipe(tuple(NETWORKS), 1, "bf16", "nf4", weight_only=True)
    source = WeightSource(Checkpoint.open(tiny_checkpoint), recipe)
    layers = {weight.name: weight.layer.format for weight in source.weights("transformer")}
    assert layers["double_blocks.0.img_attn.qkv.weight"] == "nf4"
    assert layers["img_in.weight"] == layers["double_blocks.0.img_attn.qkv.bias"] == "bf16"
    assert source.dtype("transformer") == "BF16"
