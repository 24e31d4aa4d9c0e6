"""Binds a traced graph to its weights: every initializer gets its place in a safetensors file.

`quantized_linear` has the operators that replace quantized ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ...quant.formats import FORMATS
from ...runtime.graph_file import OPERATORS
from ...safetensors_header import TensorEntry
from ..weights.plan import WeightPlan
from .quantized_linear import packed_dtypes, quantize_linear

ONNX_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "I64": ir.DataType.INT64,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
}


def bind(model: ir.Model, plans: Mapping[str, WeightPlan], *, for_gpu: bool) -> None:
    """Binds every weight of `model`; `plans`: path of a file of weights, relative to the graph's folder → its plan.

    `for_gpu`: as `quantize_linear`.

    Raises:
        RuntimeError: graph and plans do not have the same weights (a bug).
    """
    initializers = model.graph.initializers
    unbound = {name: value for name, value in initializers.items() if value.const_value is None}
    for location, plan in plans.items():
        bind_file(model.graph, unbound, plan, location, for_gpu)
    if unbound:
        raise RuntimeError(f"{model.graph.name}: no weight for {', '.join(unbound)}")


def bind_file(
    graph: ir.Graph, unbound: dict[str, ir.Value], plan: WeightPlan, location: str, for_gpu: bool
) -> None:
    """Binds the weights of one file, and removes them from `unbound`."""
    stored = plan.tensors()
    for item in plan.items:
        value = unbound.pop(item.weight, None)
        if value is None:
            raise RuntimeError(f"{plan.network}: the graph does not use {item.weight}")
        if item.layer is not None and item.layer.format in FORMATS:
            packed = packed_dtypes(item.layer.format)
            endings = {tensor.name.removeprefix(item.weight): tensor for tensor in item.tensors}
            parts = {
                ending: external(tensor, location, packed.get(ending)) for ending, tensor in endings.items()
            }
            quantize_linear(graph, value, item.layer, parts, for_gpu=for_gpu)
            continue
        main = stored[item.weight]
        if (value.dtype, tuple(value.shape or ())) != (ONNX_DTYPES[main.dtype], main.shape):
            raise RuntimeError(f"{plan.network}: {item.weight} is {value.dtype} {value.shape} in the graph")
        value.const_value = external(main, location)


def external(tensor: TensorEntry, location: str, packed: ir.DataType | None = None) -> ir.ExternalTensor:
    """A tensor in the weights' file; `packed` is ONNX's format for it if a byte holds two values."""
    dtype, shape = ONNX_DTYPES.get(tensor.dtype), tensor.shape
    if packed is not None:
        dtype, shape = packed, (*shape[:-1], 2 * shape[-1])
    if dtype is None:
        raise RuntimeError(f"{tensor.name} is stored as {tensor.dtype}, which ONNX lacks")
    return ir.ExternalTensor(
        location,
        tensor.start,
        tensor.size,
        dtype,
        shape=ir.Shape(shape),
        name=tensor.name,
        base_dir="",
    )


def serialize(model: ir.Model) -> bytes:
    """The graph as an ONNX file without weights, whose file need not exist yet.

    Raises:
        RuntimeError: PyTorch wrote an operator that the runtimes refuse to load (a bug: `OPERATORS` must have it).
    """
    if unknown := {node.op_type for node in model.graph} - OPERATORS:
        raise RuntimeError(
            f"{model.graph.name} has operators that runtime/graph_file.py does not: {sorted(unknown)}"
        )
    return ir.to_proto(model).SerializeToString(deterministic=True)
