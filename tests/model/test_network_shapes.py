"""Names, shapes and linears computed from the configuration are those of the networks that PyTorch builds."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from kontext.model.build_network import build_network  # noqa: E402
from kontext.model.config import (  # noqa: E402
    AutoencoderConfig,
    ClipConfig,
    KontextConfig,
    T5Config,
    TransformerConfig,
)
from kontext.model.networks import NETWORKS, linear_weights, weight_shapes  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402

ODD = KontextConfig(
    transformer=TransformerConfig(
        in_channels=12,
        hidden_size=120,
        num_heads=5,
        num_double_blocks=1,
        num_single_blocks=3,
        mlp_ratio=2.7,
        axes_dim=(4, 8, 12),
        text_dim=35,
        pooled_dim=21,
        guidance_embed=False,
    ),
    autoencoder=AutoencoderConfig((6, 6, 9, 12, 3), layers_per_block=3, latent_channels=3, norm_groups=3),
    text_encoder=ClipConfig(31, 21, 17, num_layers=3, num_heads=3, max_length=9),
    text_encoder_2=T5Config(
        41, 35, 7, 19, num_layers=3, num_heads=3, relative_buckets=12, relative_max_distance=20, max_length=11
    ),
)
"""Sizes that differ wherever they can."""

CONFIGS = {
    "FLUX.1 Kontext": KontextConfig(),
    "embedded": TINY,
    "odd": ODD,
    "one level, one block": replace(
        ODD,
        transformer=replace(TINY.transformer, num_double_blocks=1, num_single_blocks=1),
        autoencoder=AutoencoderConfig((8,), layers_per_block=1, norm_groups=4),
        text_encoder_2=replace(TINY.text_encoder_2, num_layers=1),
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("network", NETWORKS)
def test_lists_are_the_networks(network: str, config: KontextConfig) -> None:
    with torch.device("meta"):
        module = build_network(network, config)
    built = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert list(weight_shapes(network, config).items()) == list(built.items())
    linears = {f"{path}.weight" for path, each in module.named_modules() if isinstance(each, nn.Linear)}
    assert linear_weights(network, config) == linears


def test_unknown_networks() -> None:
    with pytest.raises(ValueError, match="no network is called 'unet'"):
        weight_shapes("unet", TINY)
