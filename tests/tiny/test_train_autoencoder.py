"""Initialization of the embedded model's autoencoder."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.tiny import train_autoencoder  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402


def test_the_autoencoder_starts_as_a_nearly_linear_map() -> None:
    from kontext.model.autoencoder import Autoencoder

    model = Autoencoder(TINY.autoencoder)
    train_autoencoder.initialize_autoencoder(model)
    assert float(model.encoder.mid.block_1.conv2.weight.abs().max()) == 0
    _, log_variance = model.encoder.moments(torch.zeros(1, 3, 32, 32))
    assert float(log_variance.mean()) == pytest.approx(-5, abs=0.5)
