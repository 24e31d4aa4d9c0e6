"""Passes on small graphs of ours: onnx's reference evaluator gets the same results before and after."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from kontext.export.graph import passes  # noqa: E402

HEAD = '<ir_version: 10, opset_import: ["" : 23, "local" : 1]>\n'


def model_of(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return ReferenceEvaluator(proto).run(None, inputs)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("result", "sizes", "literal"),
    [
        ("batch, tokens, 2, 32", "Concat <axis = 0> (kept, split)", (0, 0, 2, 32)),
        ("batch, pairs, 128", "Concat <axis = 0> (halved, whole)", (0, -1, 128)),
        ("batch, 2, 32, tokens", "Concat <axis = 0> (batch_, split, tokens_)", (0, 2, 32, -1)),
    ],
)
def test_a_computed_shape_becomes_the_same_constant(
    result: str, sizes: str, literal: tuple[int, ...]
) -> None:
    model = model_of(f"""
g (float[batch, tokens, 64] x) => (float[{result}] y)
{{
    size = Shape (x)
    first = Constant <value_ints = [0, 1]> ()
    kept = Gather (size, first)
    batch_, tokens_ = Split <num_outputs = 2> (kept)
    split = Constant <value_ints = [2, 32]> ()
    parts = Constant <value_ints = [1, 2]> ()
    halved = Div (kept, parts)
    whole = Constant <value_ints = [128]> ()
    shape = {sizes}
    y = Reshape <allowzero = 1> (x, shape)
}}
""")
    cases = [noise(batch, tokens, 64) for batch, tokens in ((1, 2), (3, 8))]
    before = [run(model, x=x)[0] for x in cases]
    passes.literal_reshapes(model.graph)
    (reshape,) = (node for node in model.graph if node.op_type == "Reshape")
    assert tuple(reshape.inputs[1].producer().attributes["value_ints"].value) == literal
    for x, expected in zip(cases, before, strict=True):
        np.testing.assert_array_equal(run(model, x=x)[0], expected)


@pytest.mark.parametrize(
    ("result", "shape"),
    [
        ("tokens, batch, 64", "Gather (size, swapped)"),  # 0 would name the wrong axis, and -1 stands for one
        ("batch, tokens, 64, 0", "Identity (empty)"),  # 0 is a length here
    ],
)
def test_a_shape_that_no_constant_can_say_is_left_computed(result: str, shape: str) -> None:
    model = model_of(f"""
g (float[batch, tokens, 64] x) => (float[{result}] y)
<float[{result}] y> {{
    size = Shape (x)
    swapped = Constant <value_ints = [1, 0, 2]> ()
    empty = Constant <value_ints = [1, 1, 64, 0]> ()
    shape = {shape}
    y = Reshape <allowzero = 1> (x, shape)
}}
""")
    passes.literal_reshapes(model.graph)
    (reshape,) = (node for node in model.graph if node.op_type == "Reshape")
    assert reshape.inputs[1].name == "shape"
    assert reshape.attributes["allowzero"].value == 1


def test_weights_are_inputs_inside_and_weights_again_behind() -> None:
    """Names come back too, whatever a pass has made of them."""
    model = model_of("""
g (float[2] x) => (float[2] y)
<float[2] w = {1, 2}, float[2] v = {3, 4}> {
    a = Add (x, w)
    y = Mul (a, v)
}
""")
    with passes.weights_as_inputs(model):
        assert [value.name for value in model.graph.inputs] == ["x", "w", "v"]
        assert not model.graph.initializers
        assert all(value.const_value is None for value in model.graph.inputs)
        model.graph.inputs[1].name = "renamed"
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert list(model.graph.initializers) == ["w", "v"]
    assert [value.name for value in model.graph.initializers.values()] == ["w", "v"]
    with passes.weights_as_inputs(model, restore=False):
        pass
    assert [value.name for value in model.graph.inputs] == ["x", "w", "v"]
    assert not model.graph.initializers


WORK = """
g (float[2] x, float[2] w) => (float[2] y)
{
    one = Constant <value_floats = [1.0, 2.0]> ()
    two = Constant <value_floats = [3.0, 5.0]> ()
    sum = Add (one, two)
    root = Sqrt (sum)
    a = local.twice (x)
    b = local.twice (x)
    same = Identity (b)
    c = Add (a, same)
    unused = Neg (c)
    scaled = Mul (c, root)
    y = Add (scaled, w)
}

<domain: "local", opset_import: ["" : 23]>
twice (p) => (q)
{
    q = Add (p, p)
}
"""


def test_what_is_constant_twice_or_unused_is_gone() -> None:
    model = model_of(WORK)
    inputs = {"x": noise(2), "w": noise(2) + 1}
    expected = run(model, **inputs)
    passes.simplify(model)
    found = operators(model)
    # twice(x) once, its sum with itself, and the bias
    assert (found["Add"], found["Mul"]) == (3, 1)
    assert not {"twice", "Sqrt", "Neg", "Identity"} & found.keys()
    np.testing.assert_allclose(run(model, **inputs)[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize(("length", "folded"), [(1 << 14, True), ((1 << 14) + 1, False)])
def test_large_constants_stay_computed(length: int, folded: bool) -> None:
    """2^14 numbers are folded, which keeps graphs small: one more is computed at run time."""
    model = model_of(f"""
g (float[1] x) => (float[{length}] y)
{{
    one = Constant <value_floats = [1.5]> ()
    shape = Constant <value_ints = [{length}]> ()
    table = Expand (one, shape)
    y = Add (x, table)
}}
""")
    passes.simplify(model)
    assert ("Expand" not in operators(model)) == folded
    np.testing.assert_array_equal(run(model, x=np.ones(1, np.float32))[0], np.full(length, 2.5, np.float32))


def test_a_finished_graph_has_its_weights_named_constants_once_and_no_traces() -> None:
    model = model_of("""
g (float[2] x) => (float[2] y, float[2] z)
<float[2] w = {7, 8}> {
    one = Constant <value_floats = [1.0, 2.0]> ()
    again = Constant <value_floats = [1.0, 2.0]> ()
    a = local.twice (x)
    b = Mul (a, one)
    c = Mul (b, w)
    y = Add (c, again)
    z = Identity (x)
}

<domain: "local", opset_import: ["" : 23]>
twice (p) => (q)
{
    q = Add (p, p)
}
""")
    x = noise(2)
    expected = run(model, x=x)
    weight = model.graph.initializers["w"]
    values = weight.const_value
    for node in model.graph.all_nodes():
        node.doc_string = node.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/me/trace.py"
        for output in node.outputs:
            output.metadata_props["trace"] = "/home/me/trace.py"
    weight.metadata_props["trace"] = "/home/me/trace.py"
    passes.optimize(model)
    assert model.graph.initializers["w"] is weight
    assert weight.const_value is None  # a weight has no value: it is bound to its file later
    weight.const_value = values
    proto = ir.to_proto(model)
    assert [each.domain for each in proto.opset_import] == [""]
    assert not proto.functions
    assert len(proto.graph.initializer) == 2
    assert "Constant" not in operators(model)
    assert b"/home/me" not in proto.SerializeToString()
    for found, known in zip(run(model, x=x), expected, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-6)
