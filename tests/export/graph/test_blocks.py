"""Repeated blocks: each has its own weights, and no replacement operator or computed shape is left in a graph."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from kontext.export.graph.blocks import repeated_blocks  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS, build_network, weight_shapes  # noqa: E402


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_is_used_once_by_its_own_block(
    name: str, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    graph = onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False).graph
    used = [tensor for node in graph.node for tensor in node.input]
    for weight in weight_shapes(name, config):
        assert used.count(weight) == 1, weight


@pytest.mark.parametrize("name", NETWORKS)
def test_kinds_name_blocks_that_are_there(name: str, tiny_checkpoint: Path) -> None:
    network = build_network(name, Checkpoint.open(tiny_checkpoint).config)
    for kind in repeated_blocks(name, Checkpoint.open(tiny_checkpoint).config):
        blocks = list(network.get_submodule(kind.path).children())
        assert len({type(block) for block in blocks}) == 1
        assert 1 <= kind.outputs <= len(kind.inputs)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "transformer"])
def test_reshapes_have_constant_shapes(name: str, tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    shapes = [node.input[1] for node in graph.node if node.op_type == "Reshape"]
    assert shapes
    assert set(shapes) <= constants
