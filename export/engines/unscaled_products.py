"""Finds products in 8 bits that leave the range of fp16 in an engine: those of older exports.

With a scale per column TensorRT writes the sum of products of codes before it multiplies by the scales, and that is up
to 448 * 448 * the number of inputs. Exports in fp16 have one scale in the product, and the columns' after it
(`export.graph.quantized_linear`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto

FLOAT16 = 10
"""ONNX's number for it."""


def unscaled_product(graph: GraphProto) -> str | None:
    """The name of a MatMul of two DequantizeLinear, of which one has several scales in fp16; None if there is none."""
    producers = {output: node for node in graph.node for output in node.output}
    several = {
        tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT16 and list(tensor.dims) != []
    }
    for node in graph.node:
        made = [producers.get(name) for name in node.input] if node.op_type == "MatMul" else []
        unpacked = [each for each in made if each is not None and each.op_type == "DequantizeLinear"]
        if len(unpacked) == 2 and any(each.input[1] in several for each in unpacked):
            return str(node.name)
    return None
