"""Quantized linears in a graph: the nodes that replace a weight, by its format's `OnnxForm`, and those that round the
linear's inputs. Standard ONNX operators only, in the patterns that engines recognize and fuse.

| form | formats | nodes | fused by |
|---|---|---|---|
| PER_CHANNEL | fp8, int8 | DequantizeLinear, a scale per column | TensorRT |
| BLOCKED | int4, uint4 | DequantizeLinear in blocks of rows | ONNX Runtime (MatMulNBits), TensorRT (int4) |
| CODEBOOK | nf4 | Gather from the table of codes, times absmax | nothing; it is for bitsandbytes' kernels |
| TWO_LEVEL | nvfp4 | DequantizeLinear of the block scales, then of the values | TensorRT on Blackwell |

Inputs with a static scale pass QuantizeLinear and DequantizeLinear, which TensorRT fuses. Those with a scale per token
are divided by their largest value and go through DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...quant.formats import FORMATS
from ...quant.formats.base import NumberFormat, OnnxForm
from ...quant.recipe import Layer

Tensors = Mapping[str, ir.ExternalTensor]
"""A weight's stored tensors by suffix; "" are the values."""


def packed_dtypes(format: str) -> dict[str, ir.DataType]:
    """Suffix → ONNX's dtype of the stored tensors of two values a byte, which safetensors calls bytes."""
    return {each.suffix: ir.DataType[each.onnx_dtype] for each in FORMATS[format].tensors if each.onnx_dtype}


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
        """What the graph computes in."""
        assert self.weight.dtype is not None
        return self.weight.dtype

    def before(
        self, operator: str, inputs: Sequence[ir.Value], outputs: int = 1, **attributes: Any
    ) -> ir.Value:
        """Adds a node right before the MatMul, so that no runtime keeps many weights unpacked; its first output."""
        node = ir.node(operator, inputs, attributes=attributes or None, num_outputs=outputs)
        self.name_node(node)
        self.graph.insert_before(self.node, node)
        return node.outputs[0]

    def name_node(self, node: ir.Node) -> None:
        """Names it after the weight and a number: the same in every export."""
        node.name = f"{self.name}/{node.op_type}_{self.nodes}"
        self.nodes += 1
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}_output_{index}"

    def initializer(self, tensor: ir.ExternalTensor | ir.Tensor) -> ir.Value:
        """The value of the graph for a stored tensor, under the tensor's name; made once."""
        name = str(tensor.name)
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        self.graph.initializers[name] = value
        return value

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """A small constant inside the graph, shared by name."""
        return self.initializer(ir.Tensor(array, name=name))


def quantize_linear(graph: ir.Graph, weight: ir.Value, layer: Layer, tensors: Tensors) -> None:
    """Replaces `weight` of the graph by the nodes of its stored tensors, and rounds the linear's inputs as `layer`
    says.

    Raises:
        RuntimeError: the weight is used by more or less than one node; a bug in this program.
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
    format = FORMATS[layer.format]
    if layer.has_static_inputs:
        linear.node.replace_input_with(0, round_statically(linear, x, format, tensors))
    elif layer.activations:
        multiply_integers(linear, x, format, tensors)
        return
    value = DEQUANTIZE[format.onnx_form](linear, format, tensors)
    value.shape, value.type = weight.shape, ir.TensorType(linear.dtype)
    ir.convenience.replace_all_uses_with(weight, value)


def dequantize_columns(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    inputs = [linear.initializer(tensors[each.suffix]) for each in format.tensors]
    return linear.before("DequantizeLinear", inputs, axis=1)


def dequantize_blocks(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    inputs = [linear.initializer(tensors[each.suffix]) for each in format.tensors]
    return linear.before("DequantizeLinear", inputs, axis=0, block_size=format.group)


def look_up_codes(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """Bytes [out, in / 2], the first code in the high half → codes [out, groups, group] → values times the groups'
    scales → [in, out]."""
    values, scales = (tensors[each.suffix] for each in format.tensors)
    packed = linear.initializer(values)
    columns, half = values.shape.numpy()
    four, low = (
        linear.constant(np.uint8(value), f"{format.name}/{name}")
        for value, name in ((4, "four"), (15, "low_half"))
    )
    last = linear.constant(np.array([-1]), f"{format.name}/last_axis")
    halves = [
        linear.before("BitShift", [packed, four], direction="RIGHT"),
        linear.before("BitwiseAnd", [packed, low]),
    ]
    codes = linear.before("Concat", [linear.before("Unsqueeze", [each, last]) for each in halves], axis=-1)
    blocks = np.array([columns, -1, format.group])
    codes = linear.before("Reshape", [codes, linear.constant(blocks, f"{format.name}/blocks_of_{columns}")])
    indices = linear.before("Cast", [codes], to=ir.DataType.INT32.value)
    table = linear.constant(np.array(format.codes, np.float32), f"{format.name}/codes")
    weight = linear.before("Gather", [table, indices])
    steps = linear.before("Unsqueeze", [linear.initializer(scales), last])
    weight = linear.before("Mul", [weight, steps])
    whole = linear.constant(np.array([columns, 2 * half]), f"{format.name}/{columns}x{2 * half}")
    weight = linear.before("Reshape", [weight, whole])
    return cast_to_compute(linear, linear.before("Transpose", [weight], perm=[1, 0]))


def dequantize_twice(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """The block scales times the weight's scale, then the values times these."""
    values, *scales = (tensors[each.suffix] for each in format.tensors)
    steps = linear.before("DequantizeLinear", [linear.initializer(each) for each in scales])
    steps = cast_to_compute(linear, steps)
    return linear.before(
        "DequantizeLinear", [linear.initializer(values), steps], axis=0, block_size=format.group
    )


DEQUANTIZE: dict[OnnxForm, Callable[[Linear, NumberFormat, Tensors], ir.Value]] = {
    OnnxForm.PER_CHANNEL: dequantize_columns,
    OnnxForm.BLOCKED: dequantize_blocks,
    OnnxForm.CODEBOOK: look_up_codes,
    OnnxForm.TWO_LEVEL: dequantize_twice,
}
"""Form → the function that adds its nodes and returns the weight [in, out] in what the graph computes in."""


def cast_to_compute(linear: Linear, value: ir.Value) -> ir.Value:
    """An fp32 value, cast to what the graph computes in."""
    return (
        value if linear.dtype == ir.DataType.FLOAT else linear.before("Cast", [value], to=linear.dtype.value)
    )


def round_statically(linear: Linear, x: ir.Value, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """x rounded to the weight's dtype with a known scale: with the weight's DequantizeLinear a product in that
    dtype."""
    dtype = tensors[""].dtype
    zero = linear.constant(np.zeros((), dtype.numpy()), f"{format.name}/zero")
    pair = [linear.initializer(tensors["_input_scale"]), zero]
    return linear.before("DequantizeLinear", [linear.before("QuantizeLinear", [x, *pair]), *pair])


def centre(linear: Linear, x: ir.Value, mean: ir.Value) -> ir.Value:
    """x minus its channels' mean; if x is a modulated norm, the mean is subtracted from its shift, one row a
    picture."""
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
    """Adds a row to the linear's output: to its bias, which runtimes fold as they load the graph, or after it."""
    product = linear.node.outputs[0]
    for user, _ in product.uses():
        for index, bias in enumerate(user.inputs):
            if user.op_type == "Add" and bias is not None and bias.name in linear.graph.initializers:
                user.replace_input_with(index, linear.before("Add", [bias, addend]))
                return
    add_after(linear, addend)


def multiply_integers(linear: Linear, x: ir.Value, format: NumberFormat, tensors: Tensors) -> None:
    """x @ W in integers: x is rounded to 8 bits with a scale for each token.

    Tokens are divided by their largest value, so one scale is right for all of them: ONNX Runtime fuses the rounding
    and the product (DynamicQuantizeMatMul), and has no kernel for a scale per token. Without the division the smallest
    tokens lose most: 8 dB of the embedded model's velocity.
    """
    if linear.dtype != ir.DataType.FLOAT:
        x = linear.before("Cast", [x], to=ir.DataType.FLOAT.value)
    last = linear.constant(np.array([-1]), f"{format.name}/last_axis")
    ends = [linear.before(f"Reduce{end}", [x, last], keepdims=1) for end in ("Max", "Min")]
    largest = linear.before(
        "Max",
        [
            ends[0],
            linear.before("Neg", [ends[1]]),
            linear.constant(np.array(1e-30, np.float32), f"{format.name}/tiny"),
        ],
    )
    rounded = linear.before("DynamicQuantizeLinear", [linear.before("Div", [x, largest])], 3)
    _, scale, zero = rounded.producer().outputs  # type: ignore[union-attr]
    product = linear.before("MatMulInteger", [rounded, linear.initializer(tensors[""]), zero])
    product = linear.before("Cast", [product], to=ir.DataType.FLOAT.value)
    column_scales = linear.initializer(tensors["_scale"])
    if linear.dtype != ir.DataType.FLOAT:
        column_scales = linear.before("Cast", [column_scales], to=ir.DataType.FLOAT.value)
    product = linear.before("Mul", [product, linear.before("Mul", [scale, column_scales])])
    result = cast_to_compute(linear, linear.before("Mul", [product, largest]))
    output = linear.node.outputs[0]
    result.shape, result.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, result)
    linear.graph.remove(linear.node, safe=True)


def add_branch(linear: Linear, x: ir.Value, tensors: Tensors) -> None:
    """Adds (x @ down) @ up to the linear's output."""
    inner = linear.before("MatMul", [x, linear.initializer(tensors["_down"])])
    add_after(linear, linear.before("MatMul", [inner, linear.initializer(tensors["_up"])]))


def add_after(linear: Linear, addend: ir.Value) -> None:
    """Adds to the linear's output."""
    result = linear.node.outputs[0]
    total = ir.node("Add", [result, addend])
    linear.name_node(total)
    total.outputs[0].shape, total.outputs[0].type = result.shape, result.type
    ir.convenience.replace_all_uses_with(result, total.outputs[0])
    total.replace_input_with(0, result)
    linear.graph.insert_after(linear.node, total)
