"""The class that an entry is compared in: bits of the weights and of the linears' inputs, and how inputs are rounded.

W4A16 stores four bits and multiplies in the compute format; "W8A8 static" rounds inputs with scales from calibration,
"W8A8 per token" with a scale for each token that is found at run time.
"""

from __future__ import annotations

import math
from collections import Counter

from ...quant.formats import FORMATS
from ...quant.formats.base import InputRounding
from ...quant.recipe import COMPUTE_BYTES, Layer
from ...runtime.bundle import Bundle
from .bits_per_weight import COUNTED, headers

WAYS = {
    InputRounding.STATIC: "static",
    InputRounding.DYNAMIC: "per token",
    InputRounding.BLOCKS: "per block",
}

UNQUANTIZED = "not quantized"

ROUNDED_ON_CPU = ("int8", "int4", "uint4")
"""Formats of weights whose inputs ONNX Runtime rounds to 8 bits on a CPU where the graph does not: it makes MatMulNBits
of them, whose accuracy level is 4 unless the session says otherwise (`OnnxRuntimeOptions.activations`)."""


def scheme(weights: int, inputs: int = 16, way: str = "") -> str:
    """`W8A8 static`: what 8-bit weights and inputs with static scales are. With fewer bits there are few entries, so
    these have one class however they round."""
    return f"W{weights}A{inputs} {way}" if way and (weights, inputs) == (8, 8) else f"W{weights}A{inputs}"


def bundle_scheme(bundle: Bundle) -> str:
    """What a bundle does: the mean width of the quantized weights whose bits are counted, to the nearest bit, and what
    the inputs of most of the transformer's are rounded to."""
    sizes: Counter[tuple[int, str]] = Counter()
    bits = count = 0
    for graph in COUNTED:
        stored = headers(bundle)[graph].tensors
        for name, entry in bundle.manifest["precision"]["layers"].get(graph, {}).items():
            layer = Layer.from_json(entry)
            if layer.format in COMPUTE_BYTES:
                continue
            size = math.prod(FORMATS[layer.format].weight_shape(tuple(stored[name].shape)) or ())
            bits += FORMATS[layer.format].bits * size
            count += size
            if graph == "transformer":
                sizes[layer_inputs(layer)] += size
    if not sizes:
        return UNQUANTIZED
    return scheme(round(bits / count), *sizes.most_common(1)[0][0])


def layer_inputs(layer: Layer) -> tuple[int, str]:
    """Bits that a quantized layer's inputs are rounded to, and how."""
    rounding = layer.input_rounding
    return (16, "") if rounding is None else (FORMATS[layer.activations].bits, WAYS[rounding])


def scheme_on_cpu(bundle: Bundle) -> str | None:
    """The class of what ONNX Runtime makes of an fp32 bundle on a CPU, where it rounds inputs that the graph does not;
    None where it computes what the graph says, or was not tried."""
    found = bundle_scheme(bundle)
    if not found.endswith("A16") or bundle.manifest["precision"]["networks"]["transformer"] != "fp32":
        return None
    layers = bundle.manifest["precision"]["layers"].get("transformer", {}).values()
    if not any(Layer.from_json(layer).format in ROUNDED_ON_CPU for layer in layers):
        return None
    return scheme(int(found[1 : found.index("A")]), 8, "per block")
