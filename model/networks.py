"""Builds the six networks of a model by name, and lists their weights' names and shapes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import nn

from .autoencoder import Decoder, Encoder
from .config import KontextConfig
from .text_encoders import ClipTextEncoder, T5Encoder
from .transformer import Modulation, Transformer

NetworkShapes: TypeAlias = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Network → native weight → shape."""

NETWORKS = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
    "modulation": "transformer",
    "transformer": "transformer",
}
"""Network, in the order that an edit runs them → component that holds its weights."""


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


def linear_weights(network: str, config: KontextConfig) -> set[str]:
    """Names of the weights of all linears, which a bundle stores as [in, out]."""
    with torch.device("meta"):
        modules = build_network(network, config).named_modules()
    return {f"{path}.weight" for path, module in modules if isinstance(module, nn.Linear)}


@functools.lru_cache(maxsize=16)  # layouts, folders and checkpoints all ask for them
def weight_shapes(name: str, config: KontextConfig) -> Mapping[str, tuple[int, ...]]:
    """Native name → shape of every weight of a network, in the network's order."""
    with torch.device("meta"):
        state = build_network(name, config).state_dict()
    return MappingProxyType({key: tuple(tensor.shape) for key, tensor in state.items()})
