"""What a graph is traced from, by its name: one of a bundle's six networks, or of the five of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...model.build_network import build_network
from ...model.config import KontextConfig
from .blocks import RepeatedBlock, repeated_blocks
from .interface import Interface, network_interface
from .pipeline_networks import (
    PIPELINE_GRAPHS,
    build_pipeline_network,
    pipeline_blocks,
    pipeline_interface,
)


@dataclass(frozen=True)
class Form:
    """A module, what its graph takes and returns, and its repeated blocks."""

    module: nn.Module
    interface: Interface
    blocks: Sequence[RepeatedBlock]


def form_of(graph: str, config: KontextConfig) -> Form:
    """Raises ValueError if no graph has this name."""
    if graph in PIPELINE_GRAPHS:
        return Form(
            build_pipeline_network(graph, config),
            pipeline_interface(graph, config),
            pipeline_blocks(graph, config),
        )
    return Form(
        build_network(graph, config), network_interface(graph, config), repeated_blocks(graph, config)
    )
