"""Each peer with networks of its own, on a random checkpoint: exactly our layers, and the error of its class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("diffusers")

from kontext.bench.fidelity.network_peers import torch_networks
from kontext.bench.fidelity.network_peers.reference_modules import linears_of
from kontext.bench.fidelity.network_peers.registry import NETWORK_PEERS
from kontext.bench.fidelity.network_peers.torch_networks import TorchMethod, quantized_paths

if TYPE_CHECKING:
    from .conftest import Edit

RANGES = {"W8A16": (38, 55), "W8A8": (14, 45), "W4A16": (8, 30), "W4A8": (8, 26)}
"""Class → the velocity's signal-to-noise ratio in dB, at random weights."""


@pytest.mark.usefixtures("short_calibration")
@pytest.mark.parametrize("name", NETWORK_PEERS)
def test_layers_and_error(name: str, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = NETWORK_PEERS[name]
    if not peer.is_installed():
        pytest.skip(f"{peer.distribution} is not installed")
    loaded = []
    load = torch_networks.load_modules
    monkeypatch.setattr(
        torch_networks, "load_modules", lambda bundle: loaded.append(load(bundle)) or loaded[0]
    )
    backend, stored = peer.open(name, edit.bundle, edit.backend, edit.layers)
    low, high = RANGES[peer.scheme.split()[0]]
    assert low < edit.velocity_snr(backend) < high
    assert 4 < stored.layer_bits() < 9 or name == "modelopt-svdquant"
    assert stored.layer_bits() < stored.file_bits(edit.bundle) < 32
    if isinstance(peer.method, TorchMethod):
        paths = {path for each in linears_of(loaded[0], edit.layers).values() for path in each}
        assert quantized_paths(peer.method, loaded[0]) == paths


def test_libraries_that_work_here() -> None:
    for name, peer in NETWORK_PEERS.items():
        if peer.is_installed():
            assert peer.why_missing() is None, name
            peer.try_out()
