"""GELU, concatenation and quantization of linears' inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import gelu

from .conftest import check_codes, check_operator, error
from .reference import gelu as reference

BOUNDS = {"fp8": 0.04, "int8": 0.02}


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([0, 1, 24, 70]),
    st.sampled_from([0, 5, 130]),
    st.sampled_from([0.1, 1, 30]),
)
def test_concatenation_gelu_and_quantization(seed: int, plain: int, mlp: int, size: float) -> None:
    if plain + mlp == 0:
        return
    g = torch.Generator().manual_seed(seed)
    fused = (torch.randn(2, 5, plain + mlp + 4, generator=g) * size)[:, 1:4]  # views of wider and more rows
    first = fused[..., :plain] if plain else None
    second = fused[..., plain : plain + mlp] if mlp else None
    parts = [first.double()] if first is not None else []
    parts += [reference(second)] if second is not None else []
    expected = torch.cat(parts, -1)
    assert error(gelu.launch_gelu_join(first, second), expected) < 1e-5
    assert error(gelu.gelu_join_reference(first, second), expected) < 1e-5
    for format, bound in BOUNDS.items():
        codes, scales = gelu.launch_gelu_join_quantize(first, second, format)
        assert error(codes.float() * scales[..., None], expected) < bound
        reference_codes, reference_scales = gelu.gelu_join_quantize_reference(first, second, format)
        assert error(scales, reference_scales) < 1e-5
        check_codes(codes, scales, reference_codes, reference_scales, size)
        mean = torch.randn(plain + mlp, generator=g) * size
        for quantized in (gelu.launch_gelu_join_quantize, gelu.gelu_join_quantize_reference):
            codes, scales = quantized(first, second, format, mean)
            assert error(codes.float() * scales[..., None], expected - mean) < bound


def test_far_from_zero_gelu_is_zero_or_the_identity() -> None:
    x = torch.tensor([[[-1e30, -100.0, 0.0, 100.0, 1e10]]])
    assert gelu.launch_gelu_join(None, x).flatten().tolist() == pytest.approx([0.0, 0.0, 0.0, 100.0, 1e10])


def test_the_operator_and_its_refusals() -> None:
    x = torch.randn(1, 4, 20)
    check_operator(gelu.gelu_join_op, (x, None))
    check_operator(gelu.gelu_join_quantize_op, (x, x, "fp8"))
    check_operator(gelu.gelu_join_quantize_op, (x, None, "int8", torch.randn(20)))
    with pytest.raises(KontextError, match="each of 20 channels, not"):
        gelu.launch_gelu_join_quantize(x, None, "fp8", torch.randn(19))
    with pytest.raises(KontextError, match="plain, mlp or both"):
        gelu.launch_gelu_join(None, None)
    with pytest.raises(KontextError, match="rows of adjacent channels"):
        gelu.launch_gelu_join(x.transpose(1, 2), None)
