"""The weights of an opened checkpoint for layouts: one at a time, LoRAs fused, in native or diffusers' names.

source = WeightSource(checkpoint, recipe)
for weight in source.weights("transformer"):     # both networks of the component
    tensor = source.read(weight)                  # [out, in], in the format that its network computes in
    parts = weight.split(tensor)                  # diffusers' name → tensor
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...model.checkpoint import Checkpoint
from ...model.config import KontextConfig
from ...model.diffusers_format import Source
from ...model.layouts import network_sources
from ...model.networks import NETWORKS, linear_weights
from ...model.stored_dtypes import STORED_DTYPES
from ...quant.recipe import Layer, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from ...quant.statistics import Statistics


@dataclass(frozen=True)
class SourceWeight:
    """One native weight, not yet read.

    `shape` is PyTorch's, [out, in] for a linear; `layer` is how the recipe stores it: `layer.format` is a name in
    `quant.formats.FORMATS`, or what its network computes in.
    """

    network: str
    name: str
    shape: tuple[int, ...]
    layer: Layer
    diffusers: Source
    """Diffusers' tensors that it consists of."""
    rows: tuple[int, ...]
    """Of each of them, in order."""
    is_linear: bool
    """Whether it is the matrix of a linear."""

    @property
    def diffusers_names(self) -> tuple[str, ...]:
        return self.diffusers.parts

    @property
    def diffusers_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple((rows, *self.shape[1:]) for rows in self.rows)

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Diffusers' name → tensor, of this weight's `tensor`. The final layer's modulation has its halves swapped."""
        return self.diffusers.split(tensor, list(self.rows))


@dataclass(frozen=True)
class WeightSource:
    """A model to be written in a layout.

    `recipe` says what every network computes in and how every weight would be stored in a bundle of the same flags.
    `variant` is what stands behind the layout's name in --to, "" for nothing. `measure` calibrates, or finds what did:
    the statistics of the linears' inputs; None if nothing asked for it.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    variant: str = ""
    measure: Callable[[], Statistics] | None = None

    @functools.cached_property
    def statistics(self) -> Statistics | None:
        """Of the linears' inputs, measured when they are first asked for."""
        return None if self.measure is None else self.measure()

    @property
    def config(self) -> KontextConfig:
        return self.checkpoint.config

    def dtype(self, network: str) -> str:
        """The format that a network's weights are stored in unless they are quantized, as safetensors names it."""
        return STORED_DTYPES[self.recipe.compute[network]]

    def weights(self, component: str) -> Iterator[SourceWeight]:
        """The weights of a component's networks in order: those of "transformer" are modulation's and the
        transformer's, those of "vae" the encoder's and the decoder's."""
        for network, owner in NETWORKS.items():
            if owner == component:
                yield from self.network_weights(network)

    def network_weights(self, network: str) -> Iterator[SourceWeight]:
        linears, sizes = linear_weights(network, self.config), self.fused_rows()
        theirs = network_sources(network, self.config)
        for name, shape in self.checkpoint.networks[network].shapes.items():
            linear = name in linears
            layer = self.recipe.layer_of(network, name, shape[::-1] if linear else shape, linear)
            parts = theirs[name].parts
            rows = (shape[0],) if len(parts) == 1 else tuple(sizes[: len(parts)])
            yield SourceWeight(network, name, shape, layer, theirs[name], rows, linear)

    def fused_rows(self) -> Sequence[int]:
        """Of the parts of a fused weight: q, k, v, and the MLP of a single block."""
        transformer = self.config.transformer
        return [transformer.hidden_size] * 3 + [transformer.mlp_size]

    def read(self, weight: SourceWeight) -> Tensor:
        """A weight with LoRAs fused, contiguous, in the format that its network computes in.

        Raises:
            KontextError: it is damaged, or does not fit into fp16.
        """
        from ..weights.convert import cast

        return cast(
            self.read_exactly(weight), self.recipe.compute[weight.network], weight.network, weight.name
        )

    def read_exactly(self, weight: SourceWeight) -> Tensor:
        """A weight in the checkpoint's format, or in fp32 if LoRAs are fused into it: what quantizers start from."""
        return self.checkpoint.networks[weight.network].read(weight.name)
