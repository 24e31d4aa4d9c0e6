"""The six networks of a model: the component that holds each, and its weights' names and shapes, without PyTorch.

`build_network` builds them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from .config import KontextConfig
from .network_shapes import network_weights

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


def linear_weights(network: str, config: KontextConfig) -> set[str]:
    """Names of the weights of all linears, which a bundle stores as [in, out]."""
    return {weight.name for weight in network_weights(network, config) if weight.is_linear}


@functools.lru_cache(maxsize=16)  # layouts, folders and checkpoints all ask for them
def weight_shapes(name: str, config: KontextConfig) -> Mapping[str, tuple[int, ...]]:
    """Native name → shape of every weight of a network, in the network's order."""
    return MappingProxyType({weight.name: weight.shape for weight in network_weights(name, config)})
