"""Bits per weight of a bundle, counted one way for every number format: the bytes of the stored tensors.

Two figures, both of the transformer and its modulation: of the layers that are quantized alone, with all that stands
for them (values, scales, low-rank branches), and of the whole files. In a small model what is spared drowns the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...errors import KontextError
from ...model.safetensors_file import SafetensorsFile, open_safetensors
from ...quant.recipe import BYTES
from ...runtime.bundle import Bundle

COUNTED = ("transformer", "modulation")

Layers = Mapping[str, Sequence[str]]
"""Graph → names of weights."""


def headers(bundle: Bundle) -> dict[str, SafetensorsFile]:
    """Of every graph's weights. Raises KontextError where a file is damaged."""
    return {name: open_safetensors(entry.weights) for name, entry in bundle.graphs.items()}


def quantized_layers(bundle: Bundle) -> dict[str, list[str]]:
    """The weights that a bundle stores in fewer than 16 bits."""
    layers: Mapping[str, Mapping[str, object]] = bundle.manifest["precision"]["layers"]
    return {
        graph: [weight for weight, layer in weights.items() if is_quantized(layer)]
        for graph, weights in layers.items()
    }


def is_quantized(layer: object) -> bool:
    """Of the manifest's entry for a weight: a format's name, or a mapping that has it."""
    return (layer["format"] if isinstance(layer, Mapping) else layer) not in BYTES


def activation_formats(bundle: Bundle) -> list[str]:
    """The formats that the transformer's graph rounds its linears' inputs to; what a backend does of its own is not
    among them."""
    layers: Mapping[str, object] = bundle.manifest["precision"]["layers"].get("transformer", {})
    found = {layer.get("activations") for layer in layers.values() if isinstance(layer, Mapping)}
    return sorted(kind for kind in found if kind)


def common_layers(reference: Bundle, bundles: Sequence[Bundle]) -> dict[str, list[str]]:
    """The weights that any of `bundles` quantizes, in the order of the reference's files.

    Raises:
        KontextError: the reference is quantized itself, or does not hold its weights itself.
    """
    if reference.links:
        raise KontextError(
            f"{reference.folder} was exported with --link-weights: a reference has its weights to itself"
        )
    if any(quantized_layers(reference).values()):
        raise KontextError(f"{reference.folder} is quantized: a reference is exported with --fp32 alone")
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
    """Bits per weight of `layers`; None where there are none, or some are in the user's own files."""
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
    """Bits per weight of the whole files, biases and what is spared included; None for a bundle over the user's."""
    if bundle.links:
        return None
    size = sum(bundle.graphs[graph].weights.stat().st_size for graph in COUNTED)
    return 8 * size / parameters(reference)


def parameters(reference: Bundle) -> int:
    """Of the transformer and its modulation."""
    each = headers(reference)
    return sum(math.prod(info.shape) for graph in COUNTED for info in each[graph].tensors.values())
