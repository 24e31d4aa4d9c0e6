"""A linear's branches in a graph, run by ONNX Runtime, against float64."""

from __future__ import annotations

import numpy as np
import pytest

ir = pytest.importorskip("onnx_ir")
import onnxruntime  # noqa: E402

pytest.importorskip("torch")

from kontext.export.graph.lora_inputs import add_lora_inputs  # noqa: E402
from kontext.model.lora_slots import Slot  # noqa: E402

WEIGHT = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)  # [in, out]
SLOTS = {
    "lin.weight": [Slot(slice(0, 4), slice(0, 5), slice(0, 4)), Slot(slice(4, 7), slice(5, 10), slice(4, 7))]
}


def graph(dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """x [batch, tokens, 5] → y [batch, tokens, 7]."""
    x = ir.Value(name="x", shape=ir.Shape(["batch", "tokens", 5]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="lin.weight", shape=ir.Shape(WEIGHT.shape), type=ir.TensorType(dtype))
    weight.const_value = ir.Tensor(WEIGHT.astype(dtype.numpy()), name="lin.weight")
    nodes = [ir.node("Cast", [x], {"to": dtype.value})]
    nodes.append(ir.node("MatMul", [nodes[0].outputs[0], weight]))
    nodes.append(ir.node("Cast", [nodes[1].outputs[0]], {"to": ir.DataType.FLOAT.value}))
    y = nodes[-1].outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["batch", "tokens", 7]), ir.TensorType(ir.DataType.FLOAT)
    whole = ir.Graph([x], [y], nodes=nodes, initializers=[weight], opset_imports={"": 23}, name="graph")
    return ir.Model(whole, ir_version=10)


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16"])
def test_branches(rank: int, dtype: str) -> None:
    model = graph(ir.DataType[dtype])
    add_lora_inputs(model, SLOTS)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    source = np.random.default_rng(1)
    x, down, up = (
        source.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5), (10, rank), (7, rank))
    )
    (y,) = session.run(None, {"x": x, "lora_down": down, "lora_up": up})
    wide = [each.astype(np.float64) for each in (x, WEIGHT, down, up)]
    x, weight, down, up = wide
    expected = x @ weight + np.concatenate([x @ down[:5] @ up[:4].T, x @ down[5:] @ up[4:].T], axis=2)
    np.testing.assert_allclose(y, expected, atol=1e-5 if dtype == "FLOAT" else 0.03)
