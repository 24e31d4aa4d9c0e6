"""Inputs rounded to E2M1 in blocks leave the compiler's graph as TensorRT's own operator, and compute the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.engines.compiler import weights_as_inputs  # noqa: E402
from kontext.export.engines.fp4_quantization import (  # noqa: E402
    SCALES,
    constant_scales,
    set_used_nodes,
    use_fp4_quantizer,
)

WIDTH = 48
SCALE = np.float32(2.0**-10)


class Quantizer(OpRun):  # type: ignore[misc]
    """What NVIDIA documents of its operator, in float64: codes in the first output, scales in the second."""

    op_domain = "trt"
    op_schema = None

    def _run(
        self, x: np.ndarray, scale: np.ndarray, axis: int, block_size: int, scale_type: int
    ) -> tuple[np.ndarray, np.ndarray]:
        e2m1, e4m3 = map(helper.tensor_dtype_to_np_dtype, (TensorProto.FLOAT4E2M1, scale_type))
        assert (axis, scale_type) == (-1, TensorProto.FLOAT8E4M3FN)
        blocks = x.astype(np.float64).reshape(*x.shape[:-1], -1, block_size)
        scales = np.minimum(np.abs(blocks).max(-1) / (6 * np.float64(scale)), 448).astype(e4m3)
        steps = scales.astype(np.float64) * scale
        units = np.divide(blocks, steps[..., None], out=np.zeros_like(blocks), where=steps[..., None] > 0)
        return units.reshape(x.shape).astype(e2m1), scales


Quantizer.__name__ = "TRT_FP4DynamicQuantize"


def rounded(casts: bool = True) -> onnx.ModelProto:
    """y = x in NVFP4, as `round_in_blocks` writes it in a graph in 16 bits."""
    kind = TensorProto.FLOAT16 if casts else TensorProto.FLOAT
    nodes = [
        *([helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT)] if casts else []),
        helper.make_node("Abs", ["x32" if casts else "x"], ["sizes"]),
        helper.make_node("Reshape", ["sizes", "shape"], ["blocks"]),
        helper.make_node("ReduceMax", ["blocks", "last"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["scale", "six"], ["most"]),
        helper.make_node("QuantizeLinear", ["largest", "most", "zero"], ["scales"]),
        helper.make_node("DequantizeLinear", ["scales", "scale"], ["steps"]),
        helper.make_node("Max", ["steps", "tiny"], ["divisor"]),
        helper.make_node(
            "QuantizeLinear",
            ["x32" if casts else "x", "divisor"],
            ["codes"],
            axis=-1,
            block_size=16,
            output_dtype=TensorProto.FLOAT4E2M1,
        ),
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["y"], axis=-1, block_size=16),
    ]
    constants = [
        numpy_helper.from_array(np.array([0, WIDTH // 16, 16]), "shape"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.float32(6), "six"),
        numpy_helper.from_array(np.float32(1e-30), "tiny"),
        numpy_helper.from_array(SCALE, "scale"),
        helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0]),
    ]
    graph = helper.make_graph(
        nodes,
        "rounded",
        [helper.make_tensor_value_info("x", kind, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTH])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


@pytest.mark.parametrize("casts", [False, True])
def test_the_operator_computes_what_the_standard_ones_do(casts: bool) -> None:
    model = rounded(casts)
    x = np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float16 if casts else np.float32)
    x[0], x[1, :16], x[2, :16] = 0, 1e-6, 60000 if casts else 1e9  # zeros, underflow, saturation
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert use_fp4_quantizer(model) == 1
    assert Counter(node.op_type for node in model.graph.node) == {
        "TRT_FP4DynamicQuantize": 1,
        "DequantizeLinear": 2,
    }
    (quantizer,) = [node for node in model.graph.node if node.domain == "trt"]
    assert list(quantizer.input) == ["x", "scale"]  # in what the graph computes in
    found = ReferenceEvaluator(model, new_ops=[Quantizer]).run(None, {"x": x})[0]
    assert np.array_equal(found, expected)
    assert np.abs(expected[0]).max() == 0
    assert np.isclose(np.abs(expected[2, :16]), 448 * 6 * SCALE).all()


def test_other_graphs_stay_as_they_are() -> None:
    model = rounded()
    model.graph.node[8].attribute[2].i = TensorProto.FLOAT8E4M3FN
    before = model.SerializeToString()
    assert use_fp4_quantizer(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("index", range(1, 1 + len(SCALES)))
def test_another_form_is_refused_and_not_guessed(index: int) -> None:
    model = rounded()
    others = [node for node in model.graph.node if node.op_type != "Mul"][index]
    others.op_type = "Identity"
    with pytest.raises(KontextError, match="rounds to E2M1 in a form that TensorRT has no operator for"):
        use_fp4_quantizer(model)


def test_the_scale_over_all_blocks_stays_a_constant(tmp_path: Path) -> None:
    model = rounded()
    use_fp4_quantizer(model)
    (tmp_path / "w").write_bytes(bytes(8) + SCALE.tobytes())
    for name, offset in (("scale", 8), ("tiny", 0)):
        (tensor,) = [item for item in model.graph.initializer if item.name == name]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w"), ("offset", offset), ("length", 4)):
            tensor.external_data.add(key=key, value=str(value))
    assert constant_scales(model.graph) == {"scale"}
    assert weights_as_inputs(model, tmp_path) == ["tiny"]
    (kept,) = [item for item in model.graph.initializer if item.name == "scale"]
    assert numpy_helper.to_array(kept) == SCALE


def test_only_nodes_that_lead_to_an_output_are_kept() -> None:
    model = rounded()
    nodes = [*model.graph.node, helper.make_node("Abs", ["codes"], ["unused"])]
    set_used_nodes(model.graph, nodes)
    assert list(model.graph.node) == nodes[:-1]
