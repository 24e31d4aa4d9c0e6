"""Configs as data: through JSON and back, and what follows from the sizes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kontext.model.config import CONFIG_CLASSES, KontextConfig, config_from_json

CONFIG = KontextConfig()


@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_a_config_survives_json(name: str) -> None:
    original = getattr(CONFIG, name)
    fields = json.loads(json.dumps(dataclasses.asdict(original)))
    assert config_from_json(name, fields | {"derived": 3}) == original


def test_sizes_that_follow() -> None:
    assert CONFIG.transformer.head_dim == sum(CONFIG.transformer.axes_dim) == 128
    assert CONFIG.transformer.mlp_size == 12_288
    assert CONFIG.autoencoder.downscale == 8
