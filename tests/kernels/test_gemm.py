"""FP8 and INT8 products with every epilogue, in the interpreter against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import gemm
from kontext.kernels.epilogue import Epilogue
from kontext.kernels.numeric import CODES, quantize_rows

from .conftest import check_operator, error
from .reference import gelu


def draw(seed: int, format: str, rows: int, depth: int, channels: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    a, a_scale = quantize_rows(torch.randn(2, rows, depth, generator=g), format)
    weight, w_scale = quantize_rows(torch.randn(channels, depth, generator=g), format)
    return (
        a,
        a_scale,
        weight,
        w_scale,
        torch.randn(channels, generator=g),
        torch.randn(2, 3, channels, generator=g)[:, 1],
    )


def product(
    a: torch.Tensor, a_scale: torch.Tensor, weight: torch.Tensor, w_scale: torch.Tensor
) -> torch.Tensor:
    dense = weight.double() * w_scale.double()[:, None]
    return (a.double() * a_scale.double()[..., None]) @ dense.t()


@settings(max_examples=5, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from(["fp8", "int8"]),
    st.sampled_from([1, 5, 70]),
    st.sampled_from([16, 123, 256]),
    st.sampled_from([8, 123]),
)
def test_products_and_epilogues(seed: int, format: str, rows: int, depth: int, channels: int) -> None:
    """Integer sums are exact, FP8 sums are fp32 sums of exact products: 1e-5 in either format."""
    a, a_scale, weight, w_scale, bias, gate = draw(seed, format, rows, depth, channels)
    wanted = product(a, a_scale, weight, w_scale)
    joint = torch.randn(2, rows + 3, channels + 5, generator=torch.Generator().manual_seed(seed))
    for run in (gemm.launch_scaled_linear, gemm.scaled_linear_reference):
        buffer = joint.clone()
        view = buffer[:, 2 : 2 + rows, :channels]
        run(view, a, a_scale, weight, w_scale)
        assert error(view, wanted) < 1e-5
        run(view, a, a_scale, weight, w_scale, bias, gate)
        assert error(view, wanted + gate.double()[:, None] * (wanted + bias.double())) < 1e-5
        view.copy_(joint[:, 2 : 2 + rows, :channels])
        assert torch.equal(buffer, joint)  # nothing around the view has changed


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_gelu_and_quantization_in_the_epilogue(format: str) -> None:
    a, a_scale, weight, w_scale, bias, _ = draw(7, format, 33, 64, 40)
    wanted = gelu(product(a, a_scale, weight, w_scale) + bias.double())
    step = (wanted.abs().max() / {"fp8": 448, "int8": 127}[format]).float().reshape(1)
    out = torch.empty(2, 33, 40, dtype=CODES[format])
    gemm.launch_scaled_linear(out, a, a_scale, weight, w_scale, bias, None, step)
    assert error(out.float() * step, wanted) < {"fp8": 0.03, "int8": 0.03}[format]
    expected = torch.empty_like(out)
    gemm.scaled_linear_reference(expected, a, a_scale, weight, w_scale, bias, None, step)
    assert (out.float() != expected.float()).float().mean() < 0.02


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_output_codes_saturate(format: str) -> None:
    a, a_scale, weight, w_scale, bias, _ = draw(8, format, 5, 64, 40)
    step = torch.full((1,), 1e-3)  # nearly all outputs are beyond the largest code
    out, expected = (torch.empty(2, 5, 40, dtype=CODES[format]) for _ in range(2))
    gemm.launch_scaled_linear(out, a, a_scale, weight, w_scale, bias, None, step)
    gemm.scaled_linear_reference(expected, a, a_scale, weight, w_scale, bias, None, step)
    assert expected.float().max() == {"fp8": 448, "int8": 127}[format]
    assert error(out.float(), expected.float()) < 0.01


def test_more_rows_than_a_group_of_tiles() -> None:
    """Tiles go in groups of 8 below each other; these are 9, of which the last has one row."""
    a, a_scale, weight, w_scale, *_ = draw(9, "fp8", 1025, 16, 300)
    out = torch.full((2, 1025, 300), float("nan"))
    gemm.launch_scaled_linear(out, a, a_scale, weight, w_scale)
    assert error(out, product(a, a_scale, weight, w_scale)) < 1e-5


def test_the_largest_codes() -> None:
    """448 * 448 * 256 and 127 * 127 * 256: no overflow anywhere."""
    for format, largest in (("fp8", 448.0), ("int8", 127.0)):
        a = torch.full((1, 3, 256), largest).to(CODES[format])
        weight = torch.full((8, 256), -largest).to(CODES[format])
        out = torch.empty(1, 3, 8)
        gemm.launch_scaled_linear(out, a, torch.ones(1, 3), weight, torch.ones(8))
        assert (out == -256 * largest**2).all()


def test_the_operator_and_its_refusals() -> None:
    a, a_scale, weight, w_scale, bias, gate = draw(1, "fp8", 4, 32, 16)
    out = torch.zeros(2, 4, 16)
    check_operator(gemm.scaled_linear_op, (out, a, a_scale, weight, w_scale, bias, gate, None))
    integers = draw(1, "int8", 4, 32, 16)
    check_operator(gemm.scaled_linear_op, (out, *integers, None))
    with pytest.raises(KontextError, match="operands of the same dtype"):
        gemm.launch_scaled_linear(out, a, a_scale, weight.to(torch.int8), w_scale)
    with pytest.raises(KontextError, match=r"weight must be contiguous \[out, 32\] .*, not \[16, 31\]"):
        gemm.launch_scaled_linear(out, a, a_scale, weight[:, :31].contiguous(), w_scale)
    with pytest.raises(
        KontextError, match=r"output must be \[2, 4, 16\], like the product, not \[2, 4, 15\]"
    ):
        gemm.launch_scaled_linear(out[..., :15], a, a_scale, weight, w_scale)
    with pytest.raises(KontextError, match=r"8.9 \(Ada\), this GPU has 8.6: use INT8 activations"):
        gemm.plan_scaled_linear(a, a_scale, weight, w_scale, Epilogue(out), arch=86)


@pytest.mark.parametrize("run", [gemm.launch_scaled_linear, gemm.scaled_linear_reference])
@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_a_residual_in_fp16_saturates(run: Callable[..., None], format: str) -> None:
    """As diffusers clips FLUX's residual streams; oracle: float64."""
    a, a_scale, weight, w_scale, bias, _ = draw(2, format, 5, 64, 40)
    gate = torch.full((2, 40), 6e4).half()
    wanted = (
        1 + gate.double()[:, None] * (product(a, a_scale, weight, w_scale) + bias.half().double())
    ).clip(-65504, 65504)
    out = torch.ones(2, 5, 40).half()
    run(out, a, a_scale, weight, w_scale, bias.half(), gate)
    assert (wanted.abs() == 65504).float().mean() > 0.5
    assert error(out, wanted) < 1e-3
    out.fill_(float("nan"))
    run(out, a, a_scale, weight, w_scale, bias.half(), gate)
    assert out.isnan().all()
