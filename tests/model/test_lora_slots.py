"""A slot for each linear that diffusers has, of its shape."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.model.checkpoint import Checkpoint
from kontext.model.config import KontextConfig
from kontext.model.lora_slots import NETWORKS, layout_digest, manifest_entry, network_slots, row_counts


@pytest.mark.parametrize("network", NETWORKS)
def test_slots_are_the_linears_of_the_checkpoint(tiny_checkpoint: Path, network: str) -> None:
    """The oracle is the checkpoint that diffusers wrote: its tensors' shapes, q, k and v apart."""
    opened = Checkpoint.open(tiny_checkpoint)
    weights = opened.networks[network]
    slots = network_slots(network, opened.config)
    inputs = outputs = 0
    for name, own in slots.items():
        shapes = [weights.files[part].shape for part in weights.sources[name].parts]
        assert [(each.up.stop - each.up.start, each.down.stop - each.down.start) for each in own] == shapes
        assert (own[0].down.start, own[0].up.start) == (inputs, outputs)
        assert [each.weight.start for each in own] == [0, *(each.weight.stop for each in own[:-1])]
        assert own[-1].weight.stop == weights.shapes[name][0]
        inputs, outputs = own[-1].down.stop, own[-1].up.stop
    assert row_counts(slots) == (inputs, outputs)


def test_other_sizes_are_another_layout() -> None:
    flux = KontextConfig()
    assert layout_digest(flux) == layout_digest(KontextConfig(name="another name"))
    longer = KontextConfig(text_encoder=KontextConfig().text_encoder.__class__(num_layers=11))
    assert layout_digest(longer) != layout_digest(flux)


def test_the_slots_of_flux() -> None:
    rows = manifest_entry(KontextConfig(), 32)["rows"]
    assert isinstance(rows, dict)
    assert set(rows) == set(NETWORKS)
    # A double block's stream: q, k and v, the projection, the MLP; a single block: q, k, v and the MLP, and the output.
    double = 2 * (3 * 3072 + 3072 + 3072 + 12288)
    assert rows["transformer"][0] == 19 * double + 38 * (4 * 3072 + 15360) + 64 + 4096 + 3072
