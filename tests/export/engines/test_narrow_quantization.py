"""Casts around bf16 quantization leave the graph that the compiler reads: the same product, in fewer operators."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kontext.export.engines.narrow_quantization import narrow_quantization

BF16 = TensorProto.BFLOAT16
COLUMNS, ROWS = 4, 8


def rounded_product(scale_format: int = BF16) -> onnx.ModelProto:
    """y = x @ W in bf16: W in INT8 with a scale for each column, x rounded to INT8 with one scale."""

    def cast(source: str, target: str, to: int = TensorProto.FLOAT) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [target], to=to)

    rng = np.random.default_rng(0)
    nodes = [
        cast("x", "x32"),
        cast("x_scale", "x_scale32"),
        helper.make_node("QuantizeLinear", ["x32", "x_scale32", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "x_scale32", "zero"], ["rounded32"]),
        cast("rounded32", "rounded", BF16),
        cast("scale", "scale32"),
        helper.make_node("DequantizeLinear", ["w", "scale32"], ["w32"], axis=1),
        cast("w32", "w16", BF16),
        helper.make_node("MatMul", ["rounded", "w16"], ["y"]),
    ]
    constants = [
        helper.make_tensor("w", TensorProto.INT8, [ROWS, COLUMNS], rng.integers(-127, 128, ROWS * COLUMNS)),
        helper.make_tensor("scale", scale_format, [COLUMNS], [0.5, 0.25, 1.0, 2.0]),
        helper.make_tensor("x_scale", scale_format, [], [0.0625]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", BF16, ["rows", ROWS])],
        [helper.make_tensor_value_info("y", BF16, ["rows", COLUMNS])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((3, ROWS)).astype(helper.tensor_dtype_to_np_dtype(BF16))
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0]).astype(np.float32)


@pytest.mark.parametrize("as_inputs", [False, True])
def test_the_casts_go_and_the_product_stays(as_inputs: bool) -> None:
    """Also where scales are inputs of the graph, as in engines that take the bundle's weights at load."""
    model = rounded_product()
    before = run(model)
    if as_inputs:
        (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == "scale"]
        model.graph.initializer.remove(scale)
        model.graph.input.append(helper.make_tensor_value_info("scale", BF16, [COLUMNS]))
    assert narrow_quantization(model.graph) == 3
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1}
    if not as_inputs:
        assert np.array_equal(run(model), before)


def test_scales_in_fp32_stay() -> None:
    model = rounded_product(TensorProto.FLOAT)
    del model.graph.node[1]  # their casts would be from fp32 to fp32
    before = operators(model)
    assert narrow_quantization(model.graph) == 0
    assert operators(model) == before - Counter(["Cast"]) or operators(model) == before
