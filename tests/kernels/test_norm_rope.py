"""RMSNorm and RoPE of queries and keys, in the interpreter against float64."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import norm_rope

from .conftest import check_operator, error
from .qkv import expected_qkv, random_case


@settings(max_examples=5, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([1, 5, 128, 131]),
    st.sampled_from([32, 64]),
    st.sampled_from([0, 3, 200]),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_norm_and_rotation(seed: int, tokens: int, head_dim: int, text_tokens: int, size: float) -> None:
    case = random_case(seed, 2, tokens, 2, head_dim, size)
    q, k, _ = expected_qkv(case, 2, text_tokens)
    for run in (norm_rope.launch_norm_rope, norm_rope.norm_rope_reference):
        out = run(*case, 2, text_tokens)
        assert error(out[0], q) < 1e-5
        assert error(out[1], k) < 1e-5


def test_the_operator_and_its_refusals() -> None:
    qkv, cos, sin, norms = random_case(0, 1, 7, 2, 32)
    check_operator(norm_rope.norm_rope_op, (qkv, cos, sin, norms, 2, 3))
    with pytest.raises(KontextError, match="heads of 32, 64, 128 channels, not 16"):
        norm_rope.launch_norm_rope(qkv, cos, sin, norms, 4, 3)
    with pytest.raises(KontextError, match=r"tables must be \[7, 16\], not \[6, 16\]"):
        norm_rope.launch_norm_rope(qkv, cos[:6], sin[:6], norms, 2, 3)
