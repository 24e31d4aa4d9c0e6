"""Gives inputs that are rounded to E2M1 in blocks the operator that TensorRT has for it, TRT_FP4DynamicQuantize.

Bundles have standard operators (`export.graph.quantized_linear.round_in_blocks`): the blocks' scales are rounded to
E4M3 under one scale, then values to E2M1 in units of both. TensorRT's parser takes E2M1 codes from its own operator
only, which has x and the one scale for inputs and both kinds of codes for outputs. The two DequantizeLinear behind it
stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...errors import KontextError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

E2M1, E4M3 = 23, 17
"""ONNX's numbers for the two formats."""

OPERATOR, DOMAIN = "TRT_FP4DynamicQuantize", "trt"

SCALES = ("Max", "DequantizeLinear", "QuantizeLinear", "ReduceMax", "Reshape", "Abs")
"""What a block's step comes from, backwards: kept from 0, codes times the one scale, these codes, the block's largest
value."""


def use_fp4_quantizer(model: ModelProto) -> int:
    """Replaces the operators in place; returns for how many inputs.

    Raises:
        KontextError: values are rounded to E2M1 in another form than that of bundles.
    """
    import onnx

    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    quantizers: dict[str, NodeProto] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or attribute(node, "output_dtype") != E2M1:
            continue
        x, step = node.input
        chain = backwards(producers, step)
        if (
            tuple(each.op_type for each in chain) != SCALES
            or chain[-1].input[0] != x
            or attribute(node, "axis") != -1
        ):
            raise KontextError(f"{node.name} rounds to E2M1 in a form that TensorRT has no operator for")
        codes, whole = chain[1].input
        cast = producers.get(x)
        quantizers[codes] = onnx.helper.make_node(
            OPERATOR,
            [cast.input[0] if cast is not None and cast.op_type == "Cast" else x, whole],
            [node.output[0], codes],
            node.name,
            domain=DOMAIN,
            axis=-1,
            block_size=attribute(node, "block_size"),
            scale_type=E4M3,
        )
    if quantizers:
        replaced = {node.output[0] for node in quantizers.values()}
        nodes = [
            quantizers.get(node.output[0], node) for node in graph.node if node.output[0] not in replaced
        ]
        set_used_nodes(graph, nodes)
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return len(quantizers)


def constant_scales(graph: GraphProto) -> set[str]:
    """Names of the scales over all blocks, of inputs and of weights that are multiplied by such inputs. TensorRT's
    parser takes the former as constants only, and with the latter as inputs the product is none in FP4."""
    if not any(node.op_type == OPERATOR for node in graph.node):
        return set()
    single = {tensor.name for tensor in graph.initializer if not tensor.dims}
    readers = ("DequantizeLinear", OPERATOR)
    return {node.input[1] for node in graph.node if node.op_type in readers} & single


def backwards(producers: Mapping[str, NodeProto], name: str) -> list[NodeProto]:
    """As many nodes as `SCALES` has, from the one that makes `name` on, each through its first input."""
    found: list[NodeProto] = []
    while len(found) < len(SCALES) and (node := producers.get(name)) is not None and node.input:
        found.append(node)
        name = node.input[0]
    return found


def attribute(node: NodeProto, name: str) -> int:
    """A whole number; 0 if the node does not have it."""
    return next((int(each.i) for each in node.attribute if each.name == name), 0)


def set_used_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Gives the graph those of `nodes`, which are in order, that lead to its outputs."""
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(nodes):
        if used & set(node.output):
            kept.append(node)
            used |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
