"""The class that an entry is compared in: bits of the weights and of the linears' inputs, and how inputs are rounded.

W4A16 stores four bits and multiplies in the compute format; "W8A8 static" rounds inputs with scales from calibration,
"W8A8 per token" with a scale for each token that is found at run time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from ...quant.formats import FORMATS
from ...quant.formats.base import InputRounding
from ...quant.recipe import COMPUTE_BYTES, Layer
from ...runtime.bundle import Bundle
from .bits_per_weight import headers

WAYS = {InputRounding.STATIC: "static", InputRounding.DYNAMIC: "per token"}

UNQUANTIZED, MIXED = "not quantized", "mixed"


def scheme(weights: int, inputs: int = 16, way: str = "") -> str:
    """`W8A8 static`: what 8-bit weights and inputs with static scales are. With fewer bits there are few entries, so
    these have one class however they round."""
    return f"W{weights}A{inputs} {way}" if way and (weights, inputs) == (8, 8) else f"W{weights}A{inputs}"


def bundle_scheme(bundle: Bundle) -> str:
    """What a bundle's graphs do to most weights of the transformer; "mixed" where weights have several widths."""
    layers: Mapping[str, object] = bundle.manifest["precision"]["layers"].get("transformer", {})
    stored = headers(bundle)["transformer"].tensors
    sizes: Counter[str] = Counter()
    widths = set()
    for name, entry in layers.items():
        layer = Layer.from_json(entry)  # type: ignore[arg-type]
        if layer.format in COMPUTE_BYTES:
            continue
        widths.add(FORMATS[layer.format].bits)
        sizes[layer_scheme(layer)] += math.prod(stored[name].shape)
    if not sizes:
        return UNQUANTIZED
    return sizes.most_common(1)[0][0] if len(widths) == 1 else MIXED


def layer_scheme(layer: Layer) -> str:
    """Of one quantized layer."""
    bits, rounding = FORMATS[layer.format].bits, layer.input_rounding
    if rounding is None:
        return scheme(bits)
    return scheme(bits, FORMATS[layer.activations].bits, WAYS[rounding])
