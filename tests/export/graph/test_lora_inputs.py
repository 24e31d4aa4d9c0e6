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


def split_graph() -> ir.Model:
    """x [batch, tokens, 5] → parts of 2, 1, 1 and 3 channels, in two Splits behind a bias, as in a single block."""
    x = ir.Value(name="x", shape=ir.Shape(["batch", "tokens", 5]), type=ir.TensorType(ir.DataType.FLOAT))
    constants = {
        "lin.weight": WEIGHT,
        "lin.bias": BIAS,
        "outer": np.array([4, 3]),
        "inner": np.array([2, 1, 1]),
    }
    values = {
        name: ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.Tensor(array, name=name),
        )
        for name, array in constants.items()
    }
    product = ir.node("MatMul", [x, values["lin.weight"]])
    biased = ir.node("Add", [product.outputs[0], values["lin.bias"]])
    outer = ir.node("Split", [biased.outputs[0], values["outer"]], {"axis": -1}, num_outputs=2)
    inner = ir.node("Split", [outer.outputs[0], values["inner"]], {"axis": 2}, num_outputs=3)
    for value, width in [
        *zip(outer.outputs, (4, 3), strict=True),
        *zip(inner.outputs, (2, 1, 1), strict=True),
    ]:
        value.shape = ir.Shape(["batch", "tokens", width])
    biased.outputs[0].shape = ir.Shape(["batch", "tokens", 7])
    ends = [ir.node("Neg", [each]) for each in (*inner.outputs, outer.outputs[1])]
    outputs = [each.outputs[0] for each in ends]
    for index, (value, width) in enumerate(zip(outputs, WIDTHS, strict=True)):
        value.name, value.shape = f"y{index}", ir.Shape(["batch", "tokens", width])
        value.type = ir.TensorType(ir.DataType.FLOAT)
    nodes = [product, biased, outer, inner, *ends]
    whole = ir.Graph(
        [x], outputs, nodes=nodes, initializers=list(values.values()), opset_imports={"": 23}, name="graph"
    )
    return ir.Model(whole, ir_version=10)


BIAS = np.arange(7, dtype=np.float32)
WIDTHS = (2, 1, 1, 3)


def slots_of(widths: tuple[int, ...]) -> dict[str, list[Slot]]:
    ends = np.cumsum(widths)
    rows = [slice(int(end) - width, int(end)) for width, end in zip(widths, ends, strict=True)]
    return {"lin.weight": [Slot(row, slice(5 * i, 5 * i + 5), row) for i, row in enumerate(rows)]}


@pytest.mark.parametrize("widths", [WIDTHS, (2, 2, 3), (1, 6)])
def test_branches_of_a_linear_that_is_split(widths: tuple[int, ...]) -> None:
    """Where the graph splits it otherwise than the slots, they are put together before."""
    model = split_graph()
    add_lora_inputs(model, slots_of(widths))
    operators = [node.op_type for node in model.graph]
    assert ("Concat" in operators) is (widths != WIDTHS)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    source = np.random.default_rng(1)
    shapes = (2, 3, 5), (5 * len(widths), 2), (7, 2)
    x, down, up = (source.standard_normal(shape).astype(np.float32) for shape in shapes)
    found = np.concatenate(session.run(None, {"x": x, "lora_down": down, "lora_up": up}), axis=2)
    branches = [x @ down[slot.down] @ up[slot.up].T for slot in slots_of(widths)["lin.weight"]]
    np.testing.assert_allclose(-found, x @ WEIGHT + BIAS + np.concatenate(branches, axis=2), atol=1e-5)
