"""Binds a traced graph to its weights: every initializer becomes a place in the bundle's safetensors file.

Quantized weights get the DequantizeLinear that turns them back into the graph's own format.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ..quant import int4
from .weights import Plan, StoredTensor

ONNX_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "I64": ir.DataType.INT64,
    "I8": ir.DataType.INT8,
}


DEQUANTIZED: dict[str, dict[str, int]] = {
    "fp8": {"axis": 1},
    "int8": {"axis": 1},
    "int4": {"axis": 0, "block_size": int4.GROUP},
}
"""Quantized formats → attributes of their DequantizeLinear: a scale for each column, or for each group of rows."""


def bind(model: ir.Model, plan: Plan, location: str) -> None:
    """Gives every weight of `model` its place; `location` is the weights' file relative to the graph's.

    Raises:
        RuntimeError: graph and plan do not have the same weights; a fault of this program.
    """
    graph = model.graph
    unbound = {name: value for name, value in graph.initializers.items() if value.const_value is None}
    stored = plan.tensors()
    for item in plan.items:
        value = unbound.pop(item.weight, None)
        if value is None:
            raise RuntimeError(f"{plan.network}: the graph does not use {item.weight}")
        main = stored[item.weight]
        if item.layer is not None and item.layer.format in DEQUANTIZED:
            scales = external(stored[f"{item.weight}_scale"], location)
            values = external(main, location, item.layer.format)
            if item.layer.rank:
                branch = [external(stored[f"{item.weight}_{part}"], location) for part in ("down", "up")]
                add_branch(graph, value, *branch)
            dequantize(graph, value, values, scales, DEQUANTIZED[item.layer.format])
        else:
            if (value.dtype, tuple(value.shape or ())) != (ONNX_DTYPES[main.dtype], main.shape):
                raise RuntimeError(
                    f"{plan.network}: {item.weight} is {value.dtype} {value.shape} in the graph"
                )
            value.const_value = external(main, location)
    if unbound:
        raise RuntimeError(f"{plan.network}: no weight for {', '.join(unbound)}")


def external(tensor: StoredTensor, location: str, weight_format: str = "") -> ir.ExternalTensor:
    """A place in the weights' file; the bytes of INT4 weights are two values each for ONNX."""
    dtype, shape = ONNX_DTYPES.get(tensor.dtype), tensor.shape
    if weight_format == "int4":
        dtype, shape = ir.DataType.INT4, (*shape[:-1], 2 * shape[-1])
    if dtype is None:
        raise RuntimeError(f"{tensor.name} is stored as {tensor.dtype}, which no graph takes")
    return ir.ExternalTensor(
        location,
        tensor.start,
        tensor.stop - tensor.start,
        dtype,
        shape=ir.Shape(shape),
        name=tensor.name,
        base_dir="",
    )


def dequantize(
    graph: ir.Graph,
    value: ir.Value,
    values: ir.ExternalTensor,
    scales: ir.ExternalTensor,
    attributes: Mapping[str, int],
) -> None:
    """Puts DequantizeLinear(values [in, out], scales) in the place of the weight `value`."""
    name, user = weight_name(value), only_user(value)
    del graph.initializers[name]
    inputs = [initializer(graph, tensor) for tensor in (values, scales)]
    node = ir.node("DequantizeLinear", inputs, attributes=dict(attributes), name=f"{name}/DequantizeLinear")
    node.outputs[0].name = f"{name}_dequantized"
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(scales.dtype)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    graph.insert_before(user, node)  # right before its use, so that no runtime keeps many weights unpacked


def add_branch(graph: ir.Graph, value: ir.Value, down: ir.ExternalTensor, up: ir.ExternalTensor) -> None:
    """Adds (x @ down) @ up to what the linear with the weight `value` makes of x."""
    name, user = weight_name(value), only_user(value)
    x, result = user.inputs[0], user.outputs[0]
    inner = ir.node("MatMul", [x, initializer(graph, down)], name=f"{name}/down")
    outer = ir.node("MatMul", [inner.outputs[0], initializer(graph, up)], name=f"{name}/up")
    total = ir.node("Add", [result, outer.outputs[0]], name=f"{name}/branch")
    for node in (inner, outer, total):
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].type = result.type
    total.outputs[0].shape = result.shape
    ir.convenience.replace_all_uses_with(result, total.outputs[0])
    total.replace_input_with(0, result)
    graph.insert_after(user, [inner, outer, total])


def initializer(graph: ir.Graph, tensor: ir.ExternalTensor) -> ir.Value:
    """A weight of the graph under its stored name."""
    value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.initializers[str(tensor.name)] = value
    return value


def weight_name(value: ir.Value) -> str:
    if value.name is None:
        raise RuntimeError("a weight has no name")
    return value.name


def only_user(value: ir.Value) -> ir.Node:
    users = [use.node for use in value.uses()]
    if len(users) != 1:
        raise RuntimeError(f"{value.name} is used by {len(users)} nodes, and a linear's weight by one")
    return users[0]


def serialize(model: ir.Model) -> bytes:
    """The graph alone as an ONNX file. The weights' bytes are elsewhere and need not exist yet."""
    return ir.to_proto(model).SerializeToString(deterministic=True)
