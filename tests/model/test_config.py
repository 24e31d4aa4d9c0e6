"""Configs as data: through JSON and back, and what follows from the sizes."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kontext.model.config import CONFIG_CLASSES, KontextConfig, T5Config, config_from_json

CONFIG = KontextConfig()


@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_a_config_survives_json(name: str) -> None:
    original = getattr(CONFIG, name)
    fields = json.loads(json.dumps(dataclasses.asdict(original)))
    assert config_from_json(name, fields | {"derived": 3}) == original


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("text_encoder", "num_layers", 65_536),
        ("text_encoder", "num_layers", 0),
        ("text_encoder", "num_layers", True),
        ("text_encoder", "hidden_size", 1 << 21),
        ("text_encoder", "layer_norm_eps", float("nan")),
        ("text_encoder", "activation", None),
        ("text_encoder_2", "max_length", 4097),
        ("transformer", "guidance_embed", 1),
        ("transformer", "axes_dim", 8),
        ("transformer", "theta", float("inf")),
        ("autoencoder", "layers_per_block", 33),
        ("autoencoder", "block_channels", []),
        ("autoencoder", "block_channels", [32] * 10),
        ("autoencoder", "block_channels", [32, "64"]),
    ],
)
def test_no_network_is_built_by_a_number_that_no_model_has(name: str, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*, which no model has"):
        config_from_json(name, {field: value})


@pytest.mark.parametrize(
    ("buckets", "distance", "fit"),
    [(32, 128, True), (4, 2, True), (3, 128, False), (511, 128, True), (512, 128, False)],
)
def test_buckets_of_distances(buckets: int, distance: int, fit: bool) -> None:
    """transformers divides by the exact buckets, and by the logarithm of how far the others reach."""
    assert T5Config(relative_buckets=buckets, relative_max_distance=distance).buckets_fit is fit


def test_sizes_that_follow() -> None:
    assert CONFIG.transformer.head_dim == sum(CONFIG.transformer.axes_dim) == 128
    assert CONFIG.transformer.mlp_size == 12_288
    assert CONFIG.autoencoder.downscale == 8
