"""The map between native weights and a diffusers folder's tensors, there and back."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kontext.model.config import KontextConfig, TransformerConfig  # noqa: E402
from kontext.model.diffusers_format import Source, swap_halves, to_diffusers  # noqa: E402
from kontext.model.layouts import network_sources  # noqa: E402
from kontext.model.networks import NETWORKS, weight_shapes  # noqa: E402

TRANSFORMER = TransformerConfig(
    in_channels=16, hidden_size=8, num_heads=1, num_double_blocks=1, num_single_blocks=1, axes_dim=(2, 2, 4)
)
CONFIG = KontextConfig(transformer=TRANSFORMER)


def test_parts_are_rows_in_order() -> None:
    source = Source(("a", "b"))
    parts = {"a": torch.zeros(2, 3), "b": torch.ones(4, 3)}
    assembled = source.assemble(parts.__getitem__)
    assert assembled[:, 0].tolist() == [0, 0, 1, 1, 1, 1]
    split = source.split(assembled, [2, 4])
    assert all(torch.equal(split[name], part) for name, part in parts.items())


def test_swapped_halves() -> None:
    source = Source(("a",), "swap_halves")
    tensor = torch.arange(4)
    assert source.assemble({"a": tensor}.__getitem__).tolist() == [2, 3, 0, 1]
    assert torch.equal(source.split(swap_halves(tensor), [4])["a"], tensor)


@pytest.mark.parametrize("network", ["transformer", "modulation"])
def test_a_network_there_and_back(network: str) -> None:
    shapes = weight_shapes(network, CONFIG)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Any] = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sources = network_sources(network, CONFIG)
    theirs = to_diffusers(state, sources, TRANSFORMER)
    assert all(torch.equal(sources[name].assemble(theirs.__getitem__), state[name]) for name in state)


def test_no_tensor_belongs_to_two_weights() -> None:
    parts = [
        (component, part)
        for network, component in NETWORKS.items()
        for source in network_sources(network, CONFIG).values()
        for part in source.parts
    ]
    assert len(parts) == len(set(parts))
