"""INT8 weights: against ONNX's DequantizeLinear, with the error that eight bits give, and nothing that breaks them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kontext.quant.formats.int8 import INT8  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_of_normal_weights(dtype: torch.dtype) -> None:
    weight = torch.randn(1024, 32, generator=torch.Generator().manual_seed(1))
    values, scale = INT8.quantize(weight, dtype)
    assert (values.dtype, scale.dtype, scale.shape) == (torch.int8, dtype, (32,))
    error = float((INT8.dequantize(values, scale.float()) - weight).norm() / weight.norm())
    assert 0.006 < error < 0.009


def test_the_reference_operator_dequantizes_the_same() -> None:
    """On a reference evaluator that is ONNX's own."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    values, scale = INT8.quantize(torch.randn(16, 4), torch.float32)
    make = onnx.helper
    node = make.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=1)
    inputs = [make.make_tensor_value_info("w", 3, [16, 4]), make.make_tensor_value_info("s", 1, [4])]
    graph = make.make_graph([node], "g", inputs, [make.make_tensor_value_info("y", 1, [16, 4])])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 23)])
    (found,) = ReferenceEvaluator(model).run(None, {"w": values.numpy(), "s": scale.numpy()})
    np.testing.assert_array_equal(found, INT8.dequantize(values, scale).numpy())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(exponent=st.integers(-44, 37), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_no_extreme_breaks_it(exponent: int, dtype: torch.dtype) -> None:
    weight = torch.randn(64, 3, generator=torch.Generator().manual_seed(3)) * 10.0**exponent
    weight[:, 1] = 0
    top = torch.finfo(dtype).max
    weight.clamp_(-top, top)
    values, scale = INT8.quantize(weight, dtype)
    assert (scale > 0).all()
    assert torch.isfinite(scale).all()
    assert (values[:, 1] == 0).all()
    assert values.abs().max() <= 127
    if 10.0**exponent > 1e3 * torch.finfo(dtype).tiny:
        bound = 0.52 * scale.float() + 0.004 * weight.abs()
        assert ((INT8.dequantize(values, scale.float()) - weight).abs() <= bound).all()


def test_negation_is_exact() -> None:
    weight = torch.randn(64, 8)
    values, scale = INT8.quantize(weight, torch.float32)
    mirrored, same = INT8.quantize(-weight, torch.float32)
    assert torch.equal(mirrored, -values)
    assert torch.equal(same, scale)
