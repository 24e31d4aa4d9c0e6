"""FLUX.1 Kontext in PyTorch, written for deployment: fused QKV, RoPE tables as inputs, a separate modulation
network."""

from __future__ import annotations

from .autoencoder import Autoencoder, Decoder, Encoder
from .config import AutoencoderConfig, ClipConfig, KontextConfig, SamplerConfig, T5Config, TransformerConfig
from .text_encoders import ClipTextEncoder, T5Encoder
from .transformer import Modulation, Transformer

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "ClipConfig",
    "ClipTextEncoder",
    "Decoder",
    "Encoder",
    "KontextConfig",
    "Modulation",
    "SamplerConfig",
    "T5Config",
    "T5Encoder",
    "Transformer",
    "TransformerConfig",
]
