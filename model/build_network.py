"""Builds the six networks of a model by name, in PyTorch."""

from __future__ import annotations

from torch import nn

from .autoencoder import Decoder, Encoder
from .config import KontextConfig
from .text_encoders import ClipTextEncoder, T5Encoder
from .transformer import Modulation, Transformer


def build_network(name: str, config: KontextConfig) -> nn.Module:
    """One of `NETWORKS`, initialized by PyTorch; build it on device `meta` if only shapes are needed."""
    if name == "transformer":
        return Transformer(config.transformer)
    if name == "modulation":
        return Modulation(config.transformer)
    if name == "vae_encoder":
        return Encoder(config.autoencoder)
    if name == "vae_decoder":
        return Decoder(config.autoencoder)
    if name == "text_encoder":
        return ClipTextEncoder(config.text_encoder)
    if name == "text_encoder_2":
        return T5Encoder(config.text_encoder_2)
    raise ValueError(f"no network is called {name!r}")
