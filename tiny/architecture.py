"""The embedded model's sizes: every part of FLUX.1 Kontext, small enough to train on two CPU cores and to commit."""

from __future__ import annotations

from ..model.config import (
    AutoencoderConfig,
    ClipConfig,
    KontextConfig,
    SamplerConfig,
    T5Config,
    TransformerConfig,
)

TINY = KontextConfig(
    name="kontext-tiny",
    transformer=TransformerConfig(
        hidden_size=192,
        num_heads=3,
        num_double_blocks=2,
        num_single_blocks=4,
        axes_dim=(8, 28, 28),
        text_dim=128,
        pooled_dim=128,
    ),
    autoencoder=AutoencoderConfig(
        block_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_groups=8,
        # Training measures the latents' mean and spread and puts the shift and scale that normalize them here.
        scaling_factor=1.0,
        shift_factor=0.0,
        sample_size=128,
    ),
    text_encoder=ClipConfig(
        vocab_size=768,
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_heads=2,
        max_length=77,
        eos_id=2,
    ),
    text_encoder_2=T5Config(
        vocab_size=512,
        hidden_size=128,
        head_dim=32,
        intermediate_size=256,
        num_layers=2,
        num_heads=4,
        relative_buckets=32,
        relative_max_distance=64,
        max_length=32,
    ),
    sampler=SamplerConfig(),
)
