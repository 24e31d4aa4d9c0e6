"""Products with INT4 weights, the low-rank branch and every epilogue, in the interpreter against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import int4
from kontext.kernels.numeric import quantize_rows
from kontext.quant.formats.int4 import INT4

from .conftest import check_operator, error
from .reference import int4 as reference

BOUNDS = {"fp32": 1e-5, "fp16": 2e-3, "fp8": 1e-5}
"""fp16 rounds the unpacked weights; products of FP8 codes and integers are exact, their scales are fp32."""


def draw(seed: int, depth: int, channels: int) -> tuple[torch.Generator, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return g, *INT4.quantize(torch.randn(depth, channels, generator=g), torch.float32)


@settings(max_examples=5, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from(list(BOUNDS)),
    st.sampled_from([1, 5, 70]),
    st.sampled_from([64, 192]),
    st.sampled_from([8, 130]),
    st.sampled_from([0, 1, 20]),
)
def test_products_and_epilogues(
    seed: int, format: str, rows: int, depth: int, channels: int, rank: int
) -> None:
    g, packed, scales = draw(seed, depth, channels)
    x = torch.randn(2, rows, depth, generator=g)
    a, a_scale = (
        (x, None) if format == "fp32" else (x.half(), None) if format == "fp16" else quantize_rows(x, format)
    )
    if format == "fp16":
        scales = scales.half()
    wide = a.double() if a_scale is None else a.double() * a_scale.double()[..., None]
    wanted = wide @ reference(packed, scales)
    low = up = None
    if rank:
        low, up = torch.randn(2, rows, rank, generator=g), torch.randn(rank, channels, generator=g)
        wanted = wanted + low.double() @ up.double()
    bias, gate = torch.randn(channels, generator=g), torch.randn(2, channels, generator=g)
    for run in (int4.launch_int4_linear, int4.int4_linear_reference):
        out = torch.zeros(2, rows, channels)
        run(out, a, a_scale, packed, scales, low, up, bias)
        assert error(out, wanted + bias.double()) < BOUNDS[format]
        run(out, a, a_scale, packed, scales, low, up, bias, gate)
        assert error(out, (1 + gate.double()[:, None]) * (wanted + bias.double())) < BOUNDS[format]


def test_the_operator_and_its_refusals() -> None:
    _, packed, scales = draw(1, 64, 16)
    out, a = torch.zeros(1, 3, 16), torch.randn(1, 3, 64)
    check_operator(int4.int4_linear_op, (out, a, None, packed, scales, None, None, None, None, None))
    with pytest.raises(KontextError, match="two factors"):
        int4.launch_int4_linear(out, a, None, packed, scales, torch.randn(1, 3, 4))
    with pytest.raises(KontextError, match="16-bit or FP8 activations, not INT8"):
        int4.launch_int4_linear(out, a.to(torch.int8), torch.ones(1, 3), packed, scales)
    with pytest.raises(KontextError, match=r"scales must be \[1, 16\]"):
        int4.launch_int4_linear(out, a, None, packed, scales[:, :8].contiguous())
    with pytest.raises(KontextError, match="groups of 64"):
        int4.launch_int4_linear(out, a[..., :32].contiguous(), None, packed[:32], scales)


@pytest.mark.parametrize("run", [int4.launch_int4_linear, int4.int4_linear_reference])
def test_a_residual_in_fp16_saturates(run: Callable[..., None]) -> None:
    """As diffusers clips FLUX's residual streams; oracle: float64."""
    g, packed, scales = draw(3, 64, 40)
    x, gate = torch.randn(2, 5, 64, generator=g).half(), torch.full((2, 40), 6e4).half()
    wanted = (1 + gate.double()[:, None] * (x.double() @ reference(packed, scales.half()))).clip(
        -65504, 65504
    )
    out = torch.ones(2, 5, 40).half()
    run(out, x, None, packed, scales.half(), None, None, None, gate)
    assert (wanted.abs() == 65504).float().mean() > 0.5
    assert error(out, wanted) < BOUNDS["fp16"]
