"""Gives a graph that computes in bf16 its quantization in bf16 back: TensorRT fuses the operators in this form only.

Bundles have the scales and the data of QuantizeLinear and DequantizeLinear cast to fp32, and the results cast back, for
ONNX Runtime's CUDA provider (`export.graph.quantized_linear`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

BF16, FLOAT = 16, 1
"""ONNX's numbers for the two formats."""


def narrow_quantization(graph: GraphProto) -> int:
    """Removes the Casts around every QuantizeLinear and DequantizeLinear whose scale is a bf16 tensor of the graph, in
    place; returns how many operators it changed. Other operators, and graphs in fp32 and fp16, stay as they are."""
    producers = {output: node for node in graph.node for output in node.output}
    narrow = {tensor.name for tensor in (*graph.initializer, *graph.input) if dtype_of(tensor) == BF16}
    renamed: dict[str, str] = {}
    changed = 0
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = cast_source(producers.get(node.input[1]), FLOAT)
        if scale not in narrow:
            continue
        node.input[1] = scale
        if node.op_type == "QuantizeLinear":
            source = cast_source(producers[node.input[0]], FLOAT)
            assert source is not None
            node.input[0] = source
        else:
            renamed[node.output[0]] = node.output[0]
        changed += 1
    for node in graph.node:
        if (source := cast_source(node, BF16)) in renamed:
            renamed[node.output[0]] = source
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    remove_unused_casts(graph)
    return changed


def dtype_of(tensor: object) -> int:
    """Of an initializer, or of a graph's input."""
    if hasattr(tensor, "data_type"):
        return int(tensor.data_type)
    return int(tensor.type.tensor_type.elem_type)  # type: ignore[attr-defined]


def cast_source(node: NodeProto | None, to: int) -> str | None:
    """What a Cast to the format `to` casts; None for any other node."""
    if node is None or node.op_type != "Cast" or node.attribute[0].i != to:
        return None
    return str(node.input[0])


def remove_unused_casts(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)
