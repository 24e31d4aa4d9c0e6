"""The embedded model's size."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.model.config import KontextConfig  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402
from kontext.tiny.network import KontextNetwork  # noqa: E402


def test_the_embedded_model_stays_below_16_megabytes() -> None:
    config: KontextConfig = TINY
    network = KontextNetwork(config)
    from kontext.model.autoencoder import Autoencoder

    parameters = sum(p.numel() for p in network.parameters())
    parameters += sum(p.numel() for p in Autoencoder(config.autoencoder).parameters())
    assert 2 * parameters < 16e6  # bf16
