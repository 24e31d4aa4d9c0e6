"""Products of older exports in fp16, whose columns' scales come too late."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from kontext.export.engines.unscaled_products import unscaled_product  # noqa: E402


@pytest.mark.parametrize(
    ("columns", "dtype", "found"),
    [
        ([4], TensorProto.FLOAT16, "product"),
        ([], TensorProto.FLOAT16, None),
        ([4], TensorProto.BFLOAT16, None),
    ],
)
def test_scales_of_columns_in_fp16(columns: list[int], dtype: int, found: str | None) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["y"], name="product"),
    ]
    scales = [helper.make_tensor(name, dtype, dims, b"\0\0" * (4 if dims else 1), raw=True)
              for name, dims in (("one", []), ("scale", columns))]  # fmt: skip
    assert unscaled_product(helper.make_graph(nodes, "g", [], [], scales)) == found


def test_weights_without_rounded_inputs() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["b"], axis=1),
        helper.make_node("MatMul", ["x", "b"], ["y"]),
    ]
    scales = [helper.make_tensor("scale", TensorProto.FLOAT16, [4], bytes(8), raw=True)]
    assert unscaled_product(helper.make_graph(nodes, "g", [], [], scales)) is None
