"""The networks for diffusers' pipelines: their weights, and a model without guidance. `layouts/test_optimum.py` runs
their graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.export.graph.interface import network_interface  # noqa: E402
from kontext.export.graph.pipeline_networks import (  # noqa: E402
    MODULATION,
    PIPELINE_GRAPHS,
    build_pipeline_network,
    pipeline_constants,
    pipeline_interface,
)
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.config import KontextConfig, T5Config, TransformerConfig  # noqa: E402
from kontext.model.networks import NETWORKS, weight_shapes  # noqa: E402


@pytest.mark.parametrize("graph", PIPELINE_GRAPHS)
def test_weights_are_those_of_the_networks(tiny_checkpoint: Path, graph: str) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    state = build_pipeline_network(graph, config).state_dict()
    found = {name.removeprefix(MODULATION): tuple(value.shape) for name, value in state.items()}
    assert len(found) == len(state)
    assert found == {
        name: shape
        for network in PIPELINE_GRAPHS[graph]
        for name, shape in weight_shapes(network, config).items()
    }


def test_every_network_is_in_one_graph() -> None:
    networks = [network for networks in PIPELINE_GRAPHS.values() for network in networks]
    assert sorted(networks) == sorted(NETWORKS)


def test_a_model_without_guidance_takes_none(tiny_checkpoint: Path) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    without = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, guidance_embed=False)
    )
    inputs = pipeline_interface("pipeline_transformer", without).inputs
    assert list(inputs) == list(pipeline_interface("pipeline_transformer", config).inputs)[:-1]
    sizes = {"batch_size": 2, "packed_height_width": 6, "sequence_length": 5}
    network = build_pipeline_network("pipeline_transformer", without)
    values = {
        key: torch.ones([sizes.get(str(size), size) for size in shape]) for key, shape in inputs.items()
    }
    with torch.no_grad():
        assert network(**values).shape == (2, 6, config.transformer.in_channels)


def test_the_longest_prompts_have_buckets() -> None:
    config = KontextConfig(
        transformer=TransformerConfig(text_dim=8), text_encoder_2=T5Config(hidden_size=8, max_length=24)
    )
    assert [tuple(table.shape) for table in pipeline_constants("text_encoder_2", config).values()] == [
        (512, 512)
    ]
    assert pipeline_constants("modulation", config) == {}


def test_unknown_graphs() -> None:
    with pytest.raises(ValueError, match="no graph is called 'x'"):
        pipeline_interface("x", KontextConfig())
    with pytest.raises(ValueError, match="no graph is called 'x'"):
        build_pipeline_network("x", KontextConfig())
    with pytest.raises(ValueError, match="no network is called 'x'"):
        network_interface("x", KontextConfig())
