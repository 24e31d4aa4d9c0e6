"""FP8 attention in a graph: replaces each Attention operator by its parts, with operands rounded to E4M3.

q * sqrt(s) and k^T * sqrt(s), with s = 1 / sqrt(head_dim), and v are rounded with calibrated static scales; the
softmax's weights with scale 1 / 448, since they are at most 1. TensorRT fuses this pattern into one kernel.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...model.config import TransformerConfig
from ...quant.formats.fp8 import E4M3_MAX, FP8
from ...quant.static_scale import static_scale
from ...quant.statistics import InputStatistics, Statistics

OPERANDS = ("q", "k", "v")
"""Operands of an attention; their statistics are named "<block>.attention.q" and so on."""


def attention_names(config: TransformerConfig) -> list[str]:
    """Names of all attentions, in the order in which the graph computes them."""
    counts = {"double_blocks": config.num_double_blocks, "single_blocks": config.num_single_blocks}
    return [f"{kind}.{index}.attention" for kind, count in counts.items() for index in range(count)]


def quantize_attention(model: ir.Model, config: TransformerConfig, statistics: Statistics) -> None:
    """Replaces every Attention of the transformer's graph.

    Raises:
        RuntimeError: the graph has other attentions, or statistics are missing (a bug).
    """
    found = [node for node in model.graph if node.op_type == "Attention"]
    names = attention_names(config)
    if len(found) != len(names):
        raise RuntimeError(f"the graph has {len(found)} attentions, the network {len(names)}")
    for node, name in zip(found, names, strict=True):
        seen = [statistics.get("transformer", f"{name}.{operand}") for operand in OPERANDS]
        if None in seen:
            raise RuntimeError(f"the statistics lack the operands of {name}")
        replace_attention(
            model.graph, node, name, config.head_dim, [each for each in seen if each is not None]
        )


def replace_attention(
    graph: ir.Graph, node: ir.Node, name: str, head_dim: int, statistics: list[InputStatistics]
) -> None:
    q, k, v = node.inputs[:3]
    result = node.outputs[0]
    assert q is not None
    compute = result.dtype
    assert compute is not None
    dtype = compute.numpy()
    root = head_dim**-0.25
    inserted: list[ir.Node] = []

    def constant(value: float, label: str, number_format: np.dtype = dtype) -> ir.Value:
        full = f"{name}/{label}"
        if full not in graph.initializers:
            tensor = ir.Tensor(np.array(value, number_format), name=full)
            each = ir.Value(name=full, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype))
            each.const_value = tensor
            graph.initializers[full] = each
        return graph.initializers[full]

    def add(operator: str, inputs: list[ir.Value | None], **attributes: int | list[int]) -> ir.Value:
        made = ir.node(operator, inputs, attributes=attributes or None, name=f"{name}/{len(inserted)}")
        made.outputs[0].name = f"{made.name}/{operator}"
        made.outputs[0].type = ir.TensorType(compute) if operator != "QuantizeLinear" else None
        inserted.append(made)
        return made.outputs[0]

    def cast(value: ir.Value, to: ir.DataType) -> ir.Value:
        """In bf16 alone: see `quantized_linear` for why quantization runs in fp32 there."""
        if compute != ir.DataType.BFLOAT16:
            return value
        result = add("Cast", [value], to=to.value)
        result.type = ir.TensorType(to)
        return result

    def rounded(value: ir.Value, scale: float, label: str) -> ir.Value:
        zero = constant(0.0, "zero", np.dtype(ml_dtypes.float8_e4m3fn))
        step = cast(constant(scale, f"{label}_scale"), ir.DataType.FLOAT)
        codes = add("QuantizeLinear", [cast(value, ir.DataType.FLOAT), step, zero])
        result = add("DequantizeLinear", [codes, step, zero])
        result.type = ir.TensorType(step.dtype or compute)
        return cast(result, compute)

    factor = constant(root, "factor")
    scales = [static_scale(each, FP8) for each in statistics]
    scaled_q = rounded(add("Mul", [q, factor]), scales[0] * root, "q")
    turned = add("Transpose", [k], perm=[0, 1, 3, 2])
    scaled_k = rounded(add("Mul", [turned, factor]), scales[1] * root, "k")
    weights = add("Softmax", [add("MatMul", [scaled_q, scaled_k])], axis=-1)
    weights = rounded(weights, 1 / E4M3_MAX, "weights")
    assert v is not None
    output = add("MatMul", [weights, rounded(v, scales[2], "v")])
    output.shape = result.shape
    graph.insert_before(node, inserted)
    ir.convenience.replace_all_uses_with(result, output)
    graph.remove(node, safe=True)
