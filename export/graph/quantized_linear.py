"""Quantized linears in a graph: the nodes that replace a weight, by its format's `OnnxForm`, and those that round the
linear's inputs. Standard ONNX operators only, in the patterns that engines recognize and fuse.

| form | formats | nodes | fused by |
|---|---|---|---|
| PER_CHANNEL | fp8, int8 | DequantizeLinear, a scale per column | TensorRT |
| BLOCKED | int4, uint4 | DequantizeLinear in blocks of rows | ONNX Runtime (MatMulNBits), TensorRT (int4) |
| CODEBOOK | nf4 | Gather from the table of codes, times absmax | nothing; it is for bitsandbytes' kernels |
| TWO_LEVEL | nvfp4 | DequantizeLinear of the block scales, then of the values | TensorRT on Blackwell |

Inputs with a static scale pass QuantizeLinear and DequantizeLinear, which TensorRT fuses; a weight in another format is
unpacked, and passes both too, with a scale per column. Inputs with a scale per token
are multiplied by MatMulInteger, in the form that ONNX Runtime fuses on CPUs or in the one that its CUDA provider takes.
Those rounded in blocks pass the two operators twice: each block's scale, then its values with that scale. Nothing else
writes E2M1 codes from computed values, so engines (`fp4_quantization`) and fidelity find these linears by that.

In graphs that compute in bf16, quantization runs in fp32 between Casts, because ONNX Runtime's CUDA provider has no
QuantizeLinear and DequantizeLinear for bf16. fp32 rounds once, to what bf16 operators would give. Compilers that fuse
the bf16 operators get them back (`narrow_quantization`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...quant.formats import FORMATS
from ...quant.formats.base import InputRounding, NumberFormat, OnnxForm
from ...quant.formats.per_channel import PerChannel
from ...quant.recipe import Layer

Tensors = Mapping[str, ir.ExternalTensor]
"""A weight's stored tensors by suffix; "" are the values."""

IntegerProduct = Callable[["Linear", ir.Value, NumberFormat, Tensors], ir.Value]
"""Adds the nodes of x @ W for an fp32 x, rounded for each token; returns the product in fp32."""

COLUMN = 2.0**-4
"""About the largest weight of a column, where a product in fp16 is written before it is multiplied by the columns'
scales: as large as its inputs' weighted mean, and not the 2^21 that sums of products of codes reach."""

SMALLEST_DIVISOR = np.array(1e-30, np.float32)
"""The least that a token's or a block's values are divided by: they may be all zeros."""


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

    @property
    def is_widened(self) -> bool:
        """Whether quantization runs in fp32 between Casts."""
        return self.dtype == ir.DataType.BFLOAT16

    def widen(self, value: ir.Value) -> ir.Value:
        """What the graph computes in → what quantization runs in."""
        return self.before("Cast", [value], to=ir.DataType.FLOAT.value) if self.is_widened else value

    def narrow(self, value: ir.Value) -> ir.Value:
        """What quantization runs in → what the graph computes in."""
        return self.before("Cast", [value], to=self.dtype.value) if self.is_widened else value

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


def quantize_linear(
    graph: ir.Graph, weight: ir.Value, layer: Layer, tensors: Tensors, *, for_gpu: bool
) -> None:
    """Replaces `weight` of the graph by the nodes of its stored tensors, and rounds the linear's inputs as `layer`
    says; products of integers take the form for GPUs or the one for CPUs.

    Raises:
        RuntimeError: the weight is used by more or less than one node; a bug in this program.
    """
    users = [use.node for use in weight.uses()]
    if weight.name is None or len(users) != 1:
        raise RuntimeError(f"{weight.name} is used by {len(users)} nodes, and a linear's weight by one")
    linear = Linear(graph, users[0], weight, weight.name)
    del graph.initializers[linear.name]
    given = linear.node.inputs[0]
    assert given is not None
    changes = []
    if layer.centred:
        changes.append(("Sub", linear.initializer(tensors["_input_mean"])))
    if layer.scaled:
        changes.append(("Mul", linear.initializer(tensors["_input_factor"])))
    x = change_channels(linear, given, changes)
    if x is not given:
        linear.node.replace_input_with(0, x)
    if layer.centred:
        add_to_bias(linear, linear.initializer(tensors["_mean_output"]))
    if layer.rank:
        add_branch(linear, x, tensors)
    format = FORMATS[layer.format]
    if layer.has_static_inputs:
        linear.node.replace_input_with(0, round_statically(linear, x, FORMATS[layer.activations], tensors))
    elif layer.input_rounding is InputRounding.BLOCKS:
        linear.node.replace_input_with(0, round_in_blocks(linear, x, FORMATS[layer.activations], tensors))
    elif layer.activations:
        multiply_integers(linear, x, format, tensors, multiply_on_gpu if for_gpu else multiply_on_cpu)
        return
    if layer.is_unpacked_to_inputs:
        value = unpack_to_inputs(linear, format, FORMATS[layer.activations], tensors)
    elif layer.has_static_inputs and linear.dtype == ir.DataType.FLOAT16:
        value = scale_afterwards(linear, linear.initializer(tensors[""]), format, tensors["_scale"])
    else:
        value = DEQUANTIZE[format.onnx_form](linear, format, tensors)
    value.shape, value.type = weight.shape, ir.TensorType(linear.dtype)
    ir.convenience.replace_all_uses_with(weight, value)


def dequantize_columns(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    return dequantize_values(linear, format, tensors, axis=1)


def dequantize_blocks(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    return dequantize_values(linear, format, tensors, axis=0, block_size=format.group)


def dequantize_values(linear: Linear, format: NumberFormat, tensors: Tensors, **attributes: int) -> ir.Value:
    """DequantizeLinear of the values, with the scales and any zero points."""
    values, scales, *zeros = (linear.initializer(tensors[each.suffix]) for each in format.tensors)
    weight = linear.before("DequantizeLinear", [values, linear.widen(scales), *zeros], **attributes)
    return linear.narrow(weight)


def look_up_codes(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """Bytes [out, in / 2] → the values of each byte's two codes, the first in the high half → [out, groups, group] →
    times the groups' scales → [in, out].

    ONNX Runtime's CUDA provider has no operator on bits, so one table has both values of a byte.
    """
    values, scales = (tensors[each.suffix] for each in format.tensors)
    columns, half = values.shape.numpy()
    indices = linear.before("Cast", [linear.initializer(values)], to=ir.DataType.INT32.value)
    table = linear.constant(pairs_of_codes(format.codes), f"{format.name}/codes_of_bytes")
    blocks = np.array([columns, -1, format.group])
    weight = linear.before("Gather", [table, indices])
    weight = linear.before("Reshape", [weight, linear.constant(blocks, f"{format.name}/blocks_of_{columns}")])
    last = linear.constant(np.array([-1]), f"{format.name}/last_axis")
    steps = linear.before("Unsqueeze", [linear.initializer(scales), last])
    weight = linear.before("Mul", [weight, steps])
    whole = linear.constant(np.array([columns, 2 * half]), f"{format.name}/{columns}x{2 * half}")
    weight = linear.before("Reshape", [weight, whole])
    return cast_to_compute(linear, linear.before("Transpose", [weight], perm=[1, 0]))


def dequantize_twice(linear: Linear, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """The block scales times the weight's scale, then the values times these, in fp32: with a Cast between the two
    TensorRT for RTX 1.7.1 crashes where inputs are rounded too."""
    values, *scales = (tensors[each.suffix] for each in format.tensors)
    steps = linear.before("DequantizeLinear", [linear.initializer(each) for each in scales])
    weight = linear.before(
        "DequantizeLinear", [linear.initializer(values), steps], axis=0, block_size=format.group
    )
    return cast_to_compute(linear, weight)


def pairs_of_codes(codes: Sequence[float]) -> np.ndarray:
    """fp32 [256, 2]: what the high and the low half of every byte stand for."""
    table = np.array(codes, np.float32)
    return np.stack([np.repeat(table, len(table)), np.tile(table, len(table))], axis=1)


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


def cast_to_fp32(linear: Linear, value: ir.Value) -> ir.Value:
    """A value of what the graph computes in, cast to fp32."""
    if linear.dtype == ir.DataType.FLOAT:
        return value
    return linear.before("Cast", [value], to=ir.DataType.FLOAT.value)


def round_statically(linear: Linear, x: ir.Value, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """x rounded to `format` with a known scale: with the DequantizeLinear of a weight in that format a product in
    it."""
    zero = linear.constant(np.zeros((), values_dtype(format).numpy()), f"{format.name}/zero")
    pair = [linear.widen(linear.initializer(tensors["_input_scale"])), zero]
    codes = linear.before("QuantizeLinear", [linear.widen(x), *pair])
    return linear.narrow(linear.before("DequantizeLinear", [codes, *pair]))


def round_in_blocks(linear: Linear, x: ir.Value, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """x rounded as `quant.block_input_scale` says: E4M3 scales of its blocks, then E2M1 values in units of these scales
    times the one from calibration. A block whose scale is 0 becomes 0."""
    product, shape = linear.node.outputs[0], linear.weight.shape
    if product.shape is None or shape is None:
        raise RuntimeError(f"{linear.name}: the dimensions of its inputs are not known")
    group = format.group
    sizes = np.array([*[0] * (len(product.shape) - 1), shape.numpy()[0] // group, group])
    name = f"{format.name}/blocks_of_inputs_{'x'.join(map(str, sizes))}"
    last = linear.constant(np.array([-1]), f"{format.name}/last_axis")
    most = linear.constant(np.array(max(format.codes), np.float32), f"{format.name}/most")
    zero = linear.constant(np.zeros((), ir.DataType.FLOAT8E4M3FN.numpy()), f"{format.name}/zero_scale")
    tiny = linear.constant(SMALLEST_DIVISOR, f"{format.name}/tiny")
    whole = linear.initializer(tensors["_input_scale"])
    x = cast_to_fp32(linear, x)
    blocks = linear.before("Reshape", [linear.before("Abs", [x]), linear.constant(sizes, name)])
    largest = linear.before("ReduceMax", [blocks, last], keepdims=0)
    scales = linear.before("QuantizeLinear", [largest, linear.before("Mul", [whole, most]), zero])
    steps = linear.before("DequantizeLinear", [scales, whole])
    blocked = {"axis": -1, "block_size": group}
    codes = linear.before(
        "QuantizeLinear",
        [x, linear.before("Max", [steps, tiny])],
        output_dtype=ir.DataType[format.tensors[0].onnx_dtype].value,
        **blocked,
    )
    return cast_to_compute(linear, linear.before("DequantizeLinear", [codes, steps], **blocked))


def values_dtype(format: NumberFormat) -> ir.DataType:
    """ONNX's dtype of the values of a format of 8 bits."""
    return {"F8_E4M3": ir.DataType.FLOAT8E4M3FN, "I8": ir.DataType.INT8}[format.tensors[0].dtype]


def unpack_to_inputs(
    linear: Linear, format: NumberFormat, inputs: NumberFormat, tensors: Tensors
) -> ir.Value:
    """The weight, rounded to the format of the linear's inputs with a scale per column. TensorRT does this in one
    kernel, and multiplies in that format. Of rounded inputs and DequantizeLinear in blocks TensorRT for RTX 1.7.1 makes
    a crash, or for inputs [tokens, channels] an engine that scales the blocks' sum."""
    weight = DEQUANTIZE[format.onnx_form](linear, format, tensors)
    scale = tensors["_column_scale"]
    columns = scale.shape.numpy()
    zeros = linear.constant(
        np.zeros(columns, values_dtype(inputs).numpy()), f"{inputs.name}/zeros_{columns[0]}"
    )
    by_column = linear.widen(linear.initializer(scale))
    codes = linear.before("QuantizeLinear", [linear.widen(weight), by_column, zeros], axis=1)
    if linear.dtype == ir.DataType.FLOAT16:
        return scale_afterwards(linear, codes, inputs, scale)
    return linear.narrow(linear.before("DequantizeLinear", [codes, by_column, zeros], axis=1))


def scale_afterwards(
    linear: Linear, codes: ir.Value, format: NumberFormat, scale: ir.ExternalTensor
) -> ir.Value:
    """The weight with one scale for all columns, about `COLUMN` over the format's largest value; its product is then
    multiplied by what the columns' own scales [out] are over that one. TensorRT multiplies by one scale inside the
    product and by several after it, when the sum of products of codes has left the range of fp16."""
    assert isinstance(format, PerChannel)
    unit = 2.0 ** math.floor(math.log2(COLUMN / format.largest))
    dtype = linear.dtype.numpy()
    one = linear.constant(np.array(unit, dtype), f"{format.name}/unit")
    inverse = linear.constant(np.array(1 / unit, dtype), f"{format.name}/units")
    zero = linear.constant(np.zeros((), values_dtype(format).numpy()), f"{format.name}/zero")
    ratios = linear.before("Mul", [linear.initializer(scale), inverse])
    product = linear.node.outputs[0]
    scaled = ir.node("Mul", [product, ratios])
    linear.name_node(scaled)
    scaled.outputs[0].shape, scaled.outputs[0].type = product.shape, product.type
    ir.convenience.replace_all_uses_with(product, scaled.outputs[0])
    scaled.replace_input_with(0, product)
    linear.graph.insert_after(linear.node, scaled)
    return linear.before("DequantizeLinear", [codes, one, zero])


def change_channels(linear: Linear, x: ir.Value, changes: Sequence[tuple[str, ir.Value]]) -> ir.Value:
    """x minus its channels' centres ("Sub"), times their factors ("Mul"), or both in turn. If x is a modulated norm,
    its shift is changed so, and its scale multiplied: one row a picture instead of every token."""
    shift = row_of(x, "Add")
    scaling = [change for change in changes if change[0] == "Mul"]
    scale = None if shift is None else row_of(other_input(*shift), "Mul")
    if shift is None or (scaling and scale is None):
        for operator, by in changes:
            x = linear.before(operator, [x, by])
        return x
    change_row(linear, *shift, changes)
    if scale is not None:
        change_row(linear, *scale, scaling)
    return x


def row_of(x: ir.Value | None, operator: str) -> tuple[ir.Node, int] | None:
    """If x is the `operator` of something and a row [batch, 1, channels], and used once: its node, and which input the
    row is."""
    node = None if x is None else x.producer()
    if x is None or node is None or node.op_type != operator or len(x.uses()) != 1:
        return None
    return next(((node, index) for index, value in enumerate(node.inputs) if is_row(value)), None)


def other_input(node: ir.Node, index: int) -> ir.Value | None:
    """Of a node of two inputs."""
    return node.inputs[1 - index]


def change_row(linear: Linear, node: ir.Node, index: int, changes: Sequence[tuple[str, ir.Value]]) -> None:
    """Applies `changes` to the node's input `index`."""
    for operator, by in changes:
        changed = ir.node(operator, [node.inputs[index], by])
        linear.name_node(changed)
        linear.graph.insert_before(node, changed)
        node.replace_input_with(index, changed.outputs[0])


def is_row(value: ir.Value | None) -> bool:
    """Whether it is [batch, 1, channels]."""
    return value is not None and value.shape is not None and len(value.shape) == 3 and value.shape[1] == 1


def add_to_bias(linear: Linear, addend: ir.Value) -> None:
    """Adds a row to the linear's output: to its bias, which runtimes fold as they load the graph, or after it."""
    product = linear.node.outputs[0]
    for user, _ in product.uses():
        for index, bias in enumerate(user.inputs):
            if user.op_type == "Add" and bias is not None and bias.name in linear.graph.initializers:
                user.replace_input_with(index, linear.before("Add", [bias, addend]))
                return
    add_after(linear, addend)


def multiply_integers(
    linear: Linear, x: ir.Value, format: NumberFormat, tensors: Tensors, multiply: IntegerProduct
) -> None:
    """x @ W in integers: x is rounded to 8 bits with a scale for each token, in fp32."""
    result = cast_to_compute(linear, multiply(linear, cast_to_fp32(linear, x), format, tensors))
    output = linear.node.outputs[0]
    result.shape, result.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, result)
    linear.graph.remove(linear.node, safe=True)


def multiply_on_cpu(linear: Linear, x: ir.Value, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """In the pattern that ONNX Runtime fuses on CPUs (DynamicQuantizeMatMul).

    It has no kernel for a scale per token. Tokens are divided by their largest value, so one scale is right for all of
    them. Without the division the smallest tokens lose most: 8 dB of the embedded model's velocity.
    """
    last = linear.constant(np.array([-1]), f"{format.name}/last_axis")
    ends = [linear.before(f"Reduce{end}", [x, last], keepdims=1) for end in ("Max", "Min")]
    tiny = linear.constant(SMALLEST_DIVISOR, f"{format.name}/tiny")
    largest = linear.before("Max", [ends[0], linear.before("Neg", [ends[1]]), tiny])
    rounded = linear.before("DynamicQuantizeLinear", [linear.before("Div", [x, largest])], 3)
    _, scale, zero = rounded.producer().outputs  # type: ignore[union-attr]
    product = linear.before("MatMulInteger", [rounded, linear.initializer(tensors[""]), zero])
    product = linear.before("Cast", [product], to=ir.DataType.FLOAT.value)
    column_scales = cast_to_fp32(linear, linear.initializer(tensors["_scale"]))
    scales = linear.before("Mul", [scale, column_scales])
    return linear.before("Mul", [linear.before("Mul", [product, scales]), largest])


def multiply_on_gpu(linear: Linear, x: ir.Value, format: NumberFormat, tensors: Tensors) -> ir.Value:
    """Signed integers on both sides, since ONNX Runtime's CUDA provider multiplies no others and has no
    DynamicQuantizeLinear."""
    last = linear.constant(np.array([-1]), f"{format.name}/last_axis")
    tiny = linear.constant(SMALLEST_DIVISOR, f"{format.name}/tiny")
    most = linear.constant(np.array(2 ** (format.bits - 1) - 1, np.float32), f"{format.name}/most")
    largest = linear.before("ReduceMax", [linear.before("Abs", [x]), last], keepdims=1)
    step = linear.before("Div", [linear.before("Max", [largest, tiny]), most])
    codes = linear.before("Round", [linear.before("Div", [x, step])])
    codes = linear.before("Cast", [codes], to=ir.DataType.INT8.value)
    product = linear.before("MatMulInteger", [codes, linear.initializer(tensors[""])])
    product = linear.before("Cast", [product], to=ir.DataType.FLOAT.value)
    column_scales = cast_to_fp32(linear, linear.initializer(tensors["_scale"]))
    return linear.before("Mul", [linear.before("Mul", [product, column_scales]), step])


def add_branch(linear: Linear, x: ir.Value, tensors: Tensors) -> None:
    """Adds (x @ down) @ up to the linear's output."""
    inner = linear.before("MatMul", [x, linear.initializer(tensors["_down"])])
    add_after(linear, linear.before("MatMul", [inner, linear.initializer(tensors["_up"])]))


def add_after(linear: Linear, addend: ir.Value) -> None:
    """Adds to the linear's output."""
    add_to(linear, linear.node.outputs[0], addend)


def add_to(linear: Linear, result: ir.Value, addend: ir.Value) -> None:
    """Adds to what a node of the graph computes from the linear's output."""
    node = result.producer()
    assert node is not None
    total = ir.node("Add", [result, addend])
    linear.name_node(total)
    total.outputs[0].shape, total.outputs[0].type = result.shape, result.type
    ir.convenience.replace_all_uses_with(result, total.outputs[0])
    total.replace_input_with(0, result)
    linear.graph.insert_after(node, total)
