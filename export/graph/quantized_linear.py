"""How quantized linears look in a graph: for each number format the nodes that stand for its weight, and what is done
to the linear's inputs. Standard ONNX operators only, in the arrangements that engines recognize and fuse.

| format | in the place of the weight [in, out] | who fuses it |
|---|---|---|
| fp8 | DequantizeLinear, a scale a column; on static inputs QuantizeLinear, DequantizeLinear | TensorRT |
| int8 | tokens over their largest value, DynamicQuantizeLinear, MatMulInteger; else DequantizeLinear | ONNX Runtime |
| int4, uint4 | DequantizeLinear in blocks of 64 rows | ONNX Runtime (MatMulNBits), TensorRT |
| nf4 | Gather from the table of codes, times absmax | nobody; it is for bitsandbytes' kernels |
| nvfp4 | DequantizeLinear of the block scales, then of the values | TensorRT on Blackwell |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...quant import int4, nf4, nvfp4
from ...quant.recipe import Layer

Tensors = Mapping[str, ir.ExternalTensor]
"""A weight's stored tensors, by what their names end in after the weight's own; "" are the values."""

PACKED = {
    "int4": {"": ir.DataType.INT4},
    "uint4": {"": ir.DataType.UINT4, "_zero_point": ir.DataType.UINT4},
    "nvfp4": {"": ir.DataType.FLOAT4E2M1},
}
"""Tensors of two values a byte for ONNX, which safetensors knows as bytes."""


@dataclass
class Linear:
    """A MatMul and its weight in a graph, while it is rewritten."""

    graph: ir.Graph
    node: ir.Node
    weight: ir.Value
    name: str
    nodes: int = 0
    """Nodes made for it so far."""

    @property
    def dtype(self) -> ir.DataType:
        """What the graph computes in here."""
        assert self.weight.dtype is not None
        return self.weight.dtype

    def before(
        self, operator: str, inputs: Sequence[ir.Value], outputs: int = 1, **attributes: Any
    ) -> ir.Value:
        """A new node right before the MatMul, so that no runtime keeps many weights unpacked; its first output."""
        node = ir.node(operator, inputs, attributes=attributes or None, num_outputs=outputs)
        self.name_node(node)
        self.graph.insert_before(self.node, node)
        return node.outputs[0]

    def name_node(self, node: ir.Node) -> None:
        """Names after the weight, numbered: the same ones in every export."""
        node.name = f"{self.name}/{node.op_type}_{self.nodes}"
        self.nodes += 1
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}_output_{index}"

    def initializer(self, tensor: ir.ExternalTensor | ir.Tensor) -> ir.Value:
        """A stored tensor as a value of the graph, under its own name; made once."""
        name = str(tensor.name)
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        self.graph.initializers[name] = value
        return value

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """A small constant inside the graph, shared by all that ask for it by this name."""
        return self.initializer(ir.Tensor(array, name=name))


def quantize_linear(graph: ir.Graph, weight: ir.Value, layer: Layer, tensors: Tensors) -> None:
    """Puts a quantized weight, and what `layer` says of its inputs, in the place of the graph's `weight`.

    Raises:
        RuntimeError: the weight is not that of one linear; a fault of this program.
    """
    users = [use.node for use in weight.uses()]
    if weight.name is None or len(users) != 1:
        raise RuntimeError(f"{weight.name} is used by {len(users)} nodes, and a linear's weight by one")
    linear = Linear(graph, users[0], weight, weight.name)
    del graph.initializers[linear.name]
    x = linear.node.inputs[0]
    assert x is not None
    if layer.centred:
        x = centre(linear, x, linear.initializer(tensors["_input_mean"]))
        linear.node.replace_input_with(0, x)
        add_to_bias(linear, linear.initializer(tensors["_mean_output"]))
    if layer.rank:
        add_branch(linear, x, tensors)
    if layer.activations == "int8":
        integer_product(linear, x, tensors)
        return
    if layer.activations == "fp8":
        linear.node.replace_input_with(0, round_statically(linear, x, tensors["_input_scale"]))
    value = DEQUANTIZED[layer.format](linear, tensors)
    value.shape, value.type = weight.shape, ir.TensorType(linear.dtype)
    ir.convenience.replace_all_uses_with(weight, value)


def by_column(linear: Linear, tensors: Tensors) -> ir.Value:
    inputs = [linear.initializer(tensors[""]), linear.initializer(tensors["_scale"])]
    return linear.before("DequantizeLinear", inputs, axis=1)


def by_group(linear: Linear, tensors: Tensors) -> ir.Value:
    parts = [tensors[ending] for ending in ("", "_scale", "_zero_point") if ending in tensors]
    inputs = [linear.initializer(part) for part in parts]
    return linear.before("DequantizeLinear", inputs, axis=0, block_size=int4.GROUP)


def by_code(linear: Linear, tensors: Tensors) -> ir.Value:
    """NF4: bytes [out, in / 2] → codes [out, groups, 64] → values times absmax → [in, out]."""
    packed = linear.initializer(tensors[""])
    columns, half = tensors[""].shape.numpy()
    four, low = (
        linear.constant(np.uint8(value), f"nf4/{name}") for value, name in ((4, "four"), (15, "low_half"))
    )
    last = linear.constant(np.array([-1]), "nf4/last_axis")
    halves = [
        linear.before("BitShift", [packed, four], direction="RIGHT"),
        linear.before("BitwiseAnd", [packed, low]),
    ]
    codes = linear.before("Concat", [linear.before("Unsqueeze", [each, last]) for each in halves], axis=-1)
    blocks = np.array([columns, -1, nf4.GROUP])
    codes = linear.before("Reshape", [codes, linear.constant(blocks, f"nf4/blocks_of_{columns}")])
    indices = linear.before("Cast", [codes], to=ir.DataType.INT32.value)
    values = linear.before("Gather", [linear.constant(np.array(nf4.CODES, np.float32), "nf4/codes"), indices])
    absmax = linear.before("Unsqueeze", [linear.initializer(tensors["_absmax"]), last])
    values = linear.before("Mul", [values, absmax])
    whole = linear.constant(np.array([columns, 2 * half]), f"nf4/{columns}x{2 * half}")
    values = linear.before("Reshape", [values, whole])
    return in_compute(linear, linear.before("Transpose", [values], perm=[1, 0]))


def by_two_levels(linear: Linear, tensors: Tensors) -> ir.Value:
    """NVFP4: the block scales times the weight's, then the values times these."""
    scale = [linear.initializer(tensors[ending]) for ending in ("_scale", "_global_scale")]
    steps = in_compute(linear, linear.before("DequantizeLinear", scale))
    return linear.before(
        "DequantizeLinear", [linear.initializer(tensors[""]), steps], axis=0, block_size=nvfp4.GROUP
    )


DEQUANTIZED: dict[str, Callable[[Linear, Tensors], ir.Value]] = {
    "fp8": by_column,
    "int8": by_column,
    "int4": by_group,
    "uint4": by_group,
    "nf4": by_code,
    "nvfp4": by_two_levels,
}
"""Format → the nodes that give the weight in the format that the graph computes in."""


def in_compute(linear: Linear, value: ir.Value) -> ir.Value:
    """An fp32 value in the format that the graph computes in."""
    return (
        value if linear.dtype == ir.DataType.FLOAT else linear.before("Cast", [value], to=linear.dtype.value)
    )


def round_statically(linear: Linear, x: ir.Value, scale: ir.ExternalTensor) -> ir.Value:
    """x rounded to E4M3 with a scale known beforehand: beside the weight's DequantizeLinear a product in FP8."""
    zero = linear.constant(np.zeros((), ml_dtypes.float8_e4m3fn), "fp8/zero")
    pair = [linear.initializer(scale), zero]
    return linear.before("DequantizeLinear", [linear.before("QuantizeLinear", [x, *pair]), *pair])


def centre(linear: Linear, x: ir.Value, mean: ir.Value) -> ir.Value:
    """x less its channels' mean; where x is a modulated norm, its shift less the mean: a row and not a picture."""
    modulate = x.producer()
    if modulate is None or modulate.op_type != "Add" or len(x.uses()) != 1:
        return linear.before("Sub", [x, mean])
    for index, shift in enumerate(modulate.inputs):
        if shift is not None and is_row(shift):
            less = ir.node("Sub", [shift, mean])
            linear.name_node(less)
            linear.graph.insert_before(modulate, less)
            modulate.replace_input_with(index, less.outputs[0])
            return x
    return linear.before("Sub", [x, mean])


def is_row(value: ir.Value) -> bool:
    """Whether it is [batch, 1, channels]."""
    return value.shape is not None and len(value.shape) == 3 and value.shape[1] == 1


def add_to_bias(linear: Linear, addend: ir.Value) -> None:
    """Adds a row to what the linear gives: to its bias, which runtimes do once as they load the graph, or after it."""
    product = linear.node.outputs[0]
    for user, _ in product.uses():
        for index, bias in enumerate(user.inputs):
            if user.op_type == "Add" and bias is not None and bias.name in linear.graph.initializers:
                user.replace_input_with(index, linear.before("Add", [bias, addend]))
                return
    add_after(linear, addend)


def integer_product(linear: Linear, x: ir.Value, tensors: Tensors) -> None:
    """x @ W in integers: x is rounded to 8 bits, each token with a scale of its own.

    Tokens are divided by their largest value, so that one scale is right for all of them: ONNX Runtime makes one kernel
    of what then rounds and multiplies (DynamicQuantizeMatMul), and has none for scales by token. Rounded without, the
    smallest tokens lose most: 8 dB of the embedded model's velocity.
    """
    if linear.dtype != ir.DataType.FLOAT:
        x = linear.before("Cast", [x], to=ir.DataType.FLOAT.value)
    last = linear.constant(np.array([-1]), "int8/last_axis")
    ends = [linear.before(f"Reduce{end}", [x, last], keepdims=1) for end in ("Max", "Min")]
    largest = linear.before(
        "Max",
        [ends[0], linear.before("Neg", [ends[1]]), linear.constant(np.array(1e-30, np.float32), "int8/tiny")],
    )
    rounded = linear.before("DynamicQuantizeLinear", [linear.before("Div", [x, largest])], 3)
    _, scale, zero = rounded.producer().outputs  # type: ignore[union-attr]
    product = linear.before("MatMulInteger", [rounded, linear.initializer(tensors[""]), zero])
    product = linear.before("Cast", [product], to=ir.DataType.FLOAT.value)
    column_scales = linear.initializer(tensors["_scale"])
    if linear.dtype != ir.DataType.FLOAT:
        column_scales = linear.before("Cast", [column_scales], to=ir.DataType.FLOAT.value)
    product = linear.before("Mul", [product, linear.before("Mul", [scale, column_scales])])
    result = in_compute(linear, linear.before("Mul", [product, largest]))
    output = linear.node.outputs[0]
    result.shape, result.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, result)
    linear.graph.remove(linear.node, safe=True)


def add_branch(linear: Linear, x: ir.Value, tensors: Tensors) -> None:
    """Adds (x @ down) @ up to what the linear makes of x."""
    inner = linear.before("MatMul", [x, linear.initializer(tensors["_down"])])
    add_after(linear, linear.before("MatMul", [inner, linear.initializer(tensors["_up"])]))


def add_after(linear: Linear, addend: ir.Value) -> None:
    """Adds to what the linear makes of x."""
    result = linear.node.outputs[0]
    total = ir.node("Add", [result, addend])
    linear.name_node(total)
    total.outputs[0].shape, total.outputs[0].type = result.shape, result.type
    ir.convenience.replace_all_uses_with(result, total.outputs[0])
    total.replace_input_with(0, result)
    linear.graph.insert_after(linear.node, total)
