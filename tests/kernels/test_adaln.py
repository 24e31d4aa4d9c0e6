"""AdaLN with and without quantization, in the interpreter against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import adaln, blocks

from .conftest import check_codes, check_operator, error
from .reference import adaln as reference

BOUNDS = {"fp8": 0.04, "int8": 0.02}
"""Of codes times scales: half a step of E4M3 is at most 2^-4 of the number, 2.6 % on average; of INT8 0.4 % of the
largest number."""


def draw(seed: int, batch: int, tokens: int, width: int, size: float) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, width, generator=g) * size
    both = torch.randn(batch, 2, width, generator=g)
    return x, both[:, 0], both[:, 1]


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 3, 5]),
    st.integers(8, 200),
    st.sampled_from([1e-2, 1, 1e4]),
)
def test_it_is_layernorm_with_shift_and_scale(
    seed: int, batch: int, tokens: int, width: int, size: float
) -> None:
    x, shift, scale = draw(seed, batch, tokens, width, size)
    expected = reference(x, shift, scale)
    assert error(adaln.launch_adaln(x, shift, scale), expected) < 1e-5
    assert error(adaln.adaln_reference(x, shift, scale), expected) < 1e-5
    for format, bound in BOUNDS.items():
        codes, scales = adaln.launch_adaln_quantize(x, shift, scale, format)
        assert error(codes.float() * scales[..., None], expected) < bound
        reference_codes, reference_scales = adaln.adaln_quantize_reference(x, shift, scale, format)
        assert error(scales, reference_scales) < 1e-5
        check_codes(
            codes, scales, reference_codes, reference_scales, 1
        )  # normalized: the input's size does not matter


def test_views_of_a_joint_buffer_and_half_precision() -> None:
    x, shift, scale = draw(1, 2, 9, 48, 1)
    part = x.half()[:, 2:7, :40]
    shift, scale = shift[:, :40], scale[:, :40]
    out = adaln.launch_adaln(part, shift.half(), scale.half())
    assert out.dtype == torch.float16
    assert error(out, reference(part, shift.half(), scale.half())) < 1e-3


def test_quantization_in_blocks() -> None:
    """The codes of views' rows; `test_blocks` compares the rounding with other code."""
    x, shift, scale = draw(4, 2, 6, 96, 1)
    part, g = x[:, 1:4], torch.full((1,), 6 / (6 * 448))
    expected = reference(part, shift, scale)
    for run in (adaln.launch_adaln_quantize, adaln.adaln_quantize_reference):
        values = blocks.block_values(*run(part, shift, scale, "nvfp4", g)) * g
        assert error(values, expected) < 0.12
    with pytest.raises(KontextError, match="a calibrated scale"):
        adaln.launch_adaln_quantize(part, shift, scale, "nvfp4")


def test_constant_and_extreme_rows_are_finite() -> None:
    x = torch.stack((torch.full((1, 64), 7.0), torch.linspace(-1e18, 1e18, 64)[None]))
    codes, scales = adaln.launch_adaln_quantize(x, torch.zeros(2, 64), torch.zeros(2, 64), "fp8")
    assert torch.isfinite(codes.float()).all()
    assert (scales > 0).all()


def test_the_operators_run_their_references_on_a_cpu() -> None:
    x, shift, scale = draw(2, 1, 4, 40, 1)
    assert torch.equal(torch.ops.kontext.adaln(x, shift, scale), adaln.adaln_reference(x, shift, scale))
    check_operator(adaln.adaln_op, (x, shift, scale))
    check_operator(adaln.adaln_quantize_op, (x, shift, scale, "int8"))


def test_refusals() -> None:
    x, shift, scale = draw(3, 1, 2, 16, 1)
    with pytest.raises(KontextError, match="fp8 or int8 or nvfp4, not to 'fp4'"):
        adaln.launch_adaln_quantize(x, shift, scale, "fp4")
    with pytest.raises(KontextError, match="up to 16384 channels, not 16385"):
        adaln.launch_adaln(torch.zeros(1, 1, 16385), torch.zeros(1, 16385), torch.zeros(1, 16385))
