"""A configuration with FLUX.1 Kontext's structure at a size that a test can export."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kontext.model.config import KontextConfig


@pytest.fixture
def small_config() -> KontextConfig:
    from kontext.model.config import ClipConfig, KontextConfig, T5Config, TransformerConfig
    from kontext.tiny.architecture import TINY

    return KontextConfig(
        "FLUX.1-Kontext-synthetic",
        TransformerConfig(hidden_size=128, num_heads=2, num_double_blocks=2, num_single_blocks=2, axes_dim=(8, 28, 28),
                          text_dim=64, pooled_dim=64),
        dataclasses.replace(TINY.autoencoder, block_channels=(8, 8)),
        ClipConfig(768, 64, 128, num_layers=1, num_heads=1),
        T5Config(512, 64, 32, 128, num_layers=1, num_heads=2, max_length=32),
    )  # fmt: skip
