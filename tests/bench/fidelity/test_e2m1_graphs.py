"""NVFP4 in ONNX Runtime: bit for bit what the stored numbers and the rounding mean, in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kontext.bench.fidelity.e2m1_graphs import replace_e2m1
from kontext.runtime.graph_file import OPERATORS

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
EVEN = np.array([0, 2, 4, 6])
"""Codes without their last bit set."""

ROWS, COLUMNS = 64, 48
SCALE = np.float32(2.0**-9)


def e2m1(units: np.ndarray) -> np.ndarray:
    """The nearest value, of two as near the one of even code, written without the product's arithmetic."""
    distance = np.abs(np.abs(units)[..., None] - VALUES)
    distance[..., EVEN] -= 1e-12  # far below the spacing of float64 inputs here, far above its rounding
    return np.copysign(VALUES[distance.argmin(-1)], units)


def e4m3(numbers: np.ndarray) -> np.ndarray:
    """The nearest of all positive E4M3 numbers, ties to the even code."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    table = np.where(
        exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent.astype(float) - 7)
    )
    found = np.clip(np.searchsorted(table, numbers), 1, 126)
    low, high = table[found - 1], table[found]
    up = (numbers - low > high - numbers) | ((numbers - low == high - numbers) & (found % 2 == 0))
    return np.where(up, high, low)


def rounded(x: np.ndarray) -> np.ndarray:
    """docs/bundle.md's rule, in float64."""
    blocks = x.astype(np.float64).reshape(len(x), -1, 16)
    scales = e4m3(np.minimum(np.abs(blocks).max(-1, keepdims=True) / (6 * float(SCALE)), 448))
    steps = scales * float(SCALE)
    units = np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0)
    return (e2m1(np.clip(units, -6, 6)) * steps).reshape(x.shape)


def model(batch: bool, compute: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = x in NVFP4, and w, an NVFP4 weight [ROWS, COLUMNS], in `compute`: as bundles have them."""
    dims = ["batch", "tokens", ROWS] if batch else ["tokens", ROWS]
    sizes = np.array([*[0] * (len(dims) - 1), ROWS // 16, 16])
    nodes = [
        helper.make_node("Abs", ["x"], ["sizes"]),
        helper.make_node("Reshape", ["sizes", "shape"], ["blocks"]),
        helper.make_node("ReduceMax", ["blocks", "last"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["scale", "six"], ["most"]),
        helper.make_node("QuantizeLinear", ["largest", "most", "zero"], ["scales"]),
        helper.make_node("DequantizeLinear", ["scales", "scale"], ["steps"]),
        helper.make_node("Max", ["steps", "tiny"], ["divisor"]),
        helper.make_node(
            "QuantizeLinear",
            ["x", "divisor"],
            ["codes"],
            axis=-1,
            block_size=16,
            output_dtype=TensorProto.FLOAT4E2M1,
        ),
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["y"], axis=-1, block_size=16),
        helper.make_node("DequantizeLinear", ["w_scale", "w_whole"], ["w_steps"]),
        helper.make_node("DequantizeLinear", ["w", "w_steps"], ["w32"], axis=0, block_size=16),
        helper.make_node("Cast", ["w32"], ["z"], to=compute),
    ]
    random = np.random.default_rng(0)
    e4m3_type = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
    scales = random.uniform(0.01, 400, (ROWS // 16, COLUMNS)).astype(e4m3_type)
    constants = [
        numpy_helper.from_array(sizes, "shape"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.float32(6), "six"),
        numpy_helper.from_array(np.float32(1e-30), "tiny"),
        numpy_helper.from_array(SCALE, "scale"),
        helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0]),
        onnx.TensorProto(
            name="w",
            data_type=TensorProto.FLOAT4E2M1,
            dims=[ROWS, COLUMNS],
            raw_data=random.integers(0, 256, ROWS * COLUMNS // 2, np.uint8).tobytes(),
        ),
        helper.make_tensor("w_scale", TensorProto.FLOAT8E4M3FN, scales.shape, scales.tobytes(), raw=True),
        numpy_helper.from_array(np.float32(0.37), "w_whole"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, dims),
            helper.make_tensor_value_info("z", compute, [ROWS, COLUMNS]),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def inputs() -> np.ndarray:
    """Normal numbers of many sizes, zeros, blocks beyond the scales' range at both ends, and every tie."""
    random = np.random.default_rng(1)
    x = random.standard_normal((200, ROWS)) * 2.0 ** random.integers(-8, 3, (200, 1))
    x[0] = 0
    x[1, :16], x[2, :16] = 1e-7, 1e4
    ties = np.repeat((VALUES[1:] + VALUES[:-1]) / 2, 2) * np.tile([1, -1], 7)
    x[3, :14], x[3, 14:16] = ties * float(SCALE), 6 * float(SCALE)
    return x.astype(np.float32)


@pytest.mark.parametrize("batch", [False, True])
def test_inputs_are_rounded_bit_for_bit(batch: bool) -> None:
    whole, x = model(batch), inputs()
    expected = rounded(x).astype(np.float32)
    given = x.reshape(2, 100, ROWS) if batch else x
    reference, weight = ReferenceEvaluator(whole).run(None, {"x": given})
    assert np.array_equal(reference.reshape(x.shape), expected)
    assert replace_e2m1(whole.graph) == 2
    onnx.checker.check_model(whole, full_check=True)
    assert {node.op_type for node in whole.graph.node} <= OPERATORS  # or a bundle with it is refused
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    found, unpacked = session.run(None, {"x": given})
    assert np.array_equal(found.reshape(x.shape), expected)
    assert np.array_equal(unpacked, weight)
    assert np.abs(found).max() == 448 * 6 * SCALE


def test_weights_are_their_stored_numbers() -> None:
    whole = model(False, TensorProto.FLOAT16)
    tensors = {tensor.name: tensor for tensor in whole.graph.initializer}
    raw = np.frombuffer(tensors["w"].raw_data, np.uint8)
    codes = np.stack([raw & 15, raw >> 4], axis=1).reshape(ROWS, COLUMNS)
    scales = numpy_helper.to_array(tensors["w_scale"]).astype(np.float64)
    signed = VALUES[codes & 7] * np.where(codes & 8, -1, 1)
    steps = (scales * np.float64(np.float32(0.37))).astype(np.float32).astype(np.float64)
    expected = (signed * steps.repeat(16, 0)).astype(np.float32).astype(np.float16)
    replace_e2m1(whole.graph)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(["z"], {"x": inputs()})[0], expected)


def test_the_rounding_here_is_that_of_ml_dtypes() -> None:
    units = np.concatenate([np.linspace(-7, 7, 4001), (VALUES[1:] + VALUES[:-1]) / 2]).astype(np.float32)
    theirs = units.astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    assert np.array_equal(e2m1(np.clip(units.astype(np.float64), -6, 6)), theirs)
