"""Bits per weight of a bundle, counted alike for every number format: from the bytes of the stored tensors.

Two figures for the transformer and its modulation: of the quantized layers (values, scales, low-rank branches), and of
the whole files, which in a small model mostly measures the layers that are not quantized.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import KontextError
from ...model.safetensors_file import SafetensorsFile, open_safetensors
from ...quant.formats.layer_fields import check_layers
from ...quant.recipe import COMPUTE_BYTES
from ...runtime.bundle import Bundle

COUNTED = ("transformer", "modulation")

Layers = Mapping[str, Sequence[str]]
"""Graph → names of its weights."""


@dataclass
class StoredBits:
    """What a peer would store for the quantized layers: bits, scales included, and number of weights, by graph."""

    bits: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def layer_bits(self) -> float:
        return sum(self.bits[graph] for graph in COUNTED) / sum(self.counts[graph] for graph in COUNTED)

    def file_bits(self, reference: Bundle) -> float:
        """Bits per weight of the whole files, if the quantized layers were stored so."""
        whole = 8 * sum(reference.graphs[graph].weights.stat().st_size for graph in COUNTED)
        saved = sum(self.original_bits(reference, graph) - self.bits[graph] for graph in COUNTED)
        return (whole - saved) / parameters(reference)

    def original_bits(self, reference: Bundle, graph: str) -> int:
        """Bits of the quantized layers in the reference."""
        width = {"fp32": 32, "fp16": 16, "bf16": 16}[reference.manifest["precision"]["networks"][graph]]
        return width * self.counts[graph]


def count_weights(reference: Bundle, layers: Layers) -> dict[str, int]:
    """Graph → number of weights in its layers."""
    each = headers(reference)
    return {
        graph: sum(math.prod(each[graph].tensors[weight].shape) for weight in weights)
        for graph, weights in layers.items()
    }


def headers(bundle: Bundle) -> dict[str, SafetensorsFile]:
    """Graph → header of its weights' file. Raises KontextError for a damaged file."""
    return {name: open_safetensors(entry.weights) for name, entry in bundle.graphs.items()}


def quantized_layers(bundle: Bundle) -> dict[str, list[str]]:
    """The weights that a bundle stores in less than 16 bits, by graph. Raises KontextError if its manifest's layers say
    what does not go together."""
    check_layers(bundle.manifest, bundle.folder)
    layers: Mapping[str, Mapping[str, object]] = bundle.manifest["precision"]["layers"]
    return {
        graph: [weight for weight, layer in weights.items() if is_quantized(layer)]
        for graph, weights in layers.items()
    }


def is_quantized(layer: object) -> bool:
    """Whether a manifest's entry for a weight, a format's name or a mapping with one, is a quantized format."""
    return (layer["format"] if isinstance(layer, Mapping) else layer) not in COMPUTE_BYTES


def activation_formats(bundle: Bundle) -> list[str]:
    """The formats that the transformer's graph quantizes its linears' inputs to, not counting what a backend adds; in
    front of one how it rounds, where the format has several ways."""
    layers: Mapping[str, object] = bundle.manifest["precision"]["layers"].get("transformer", {})
    found = {
        f"{layer.get('rounding', '')} {layer['activations']}".strip()
        for layer in layers.values()
        if isinstance(layer, Mapping) and layer.get("activations")
    }
    return sorted(found)


def check_reference(bundle: Bundle) -> None:
    """Raises KontextError if a reference is quantized, or links its weights."""
    if bundle.links:
        raise KontextError(
            f"{bundle.folder} was exported with --link-weights: export the reference without it"
        )
    if any(quantized_layers(bundle).values()):
        raise KontextError(f"{bundle.folder} is quantized: export the reference with --fp32 only")


def common_layers(reference: Bundle, bundles: Sequence[Bundle]) -> dict[str, list[str]]:
    """The weights that at least one of `bundles` quantizes, in the order of the reference's files.

    Raises:
        KontextError: the reference is quantized, or links its weights.
    """
    check_reference(reference)
    wanted = {
        (graph, weight)
        for bundle in bundles
        for graph, weights in quantized_layers(bundle).items()
        for weight in weights
    }
    return {
        graph: [weight for weight in header.tensors if (graph, weight) in wanted]
        for graph, header in headers(reference).items()
    }


def layer_bits(bundle: Bundle, reference: Bundle, layers: Layers) -> float | None:
    """Bits per weight of `layers`; None if there are none, or if some are linked from the checkpoint."""
    size = count = 0
    ours, theirs = headers(bundle), headers(reference)
    for graph in COUNTED:
        for weight in layers[graph]:
            stored = [
                entry.size
                for name, entry in ours[graph].tensors.items()
                if name == weight or name.startswith(f"{weight}_")
            ]
            if not stored:
                return None
            size += sum(stored)
            count += math.prod(theirs[graph].tensors[weight].shape)
    return 8 * size / count if count else None


def file_bits(bundle: Bundle, reference: Bundle) -> float | None:
    """Bits per weight of the whole files; None for a bundle that links its weights."""
    if bundle.links:
        return None
    size = sum(bundle.graphs[graph].weights.stat().st_size for graph in COUNTED)
    return 8 * size / parameters(reference)


def parameters(reference: Bundle) -> int:
    """Number of parameters of the transformer and its modulation."""
    each = headers(reference)
    return sum(math.prod(info.shape) for graph in COUNTED for info in each[graph].tensors.values())
