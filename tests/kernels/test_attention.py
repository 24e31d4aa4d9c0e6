"""Attention in every format and head size, of any length, in the interpreter against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import attention, key_order, norm_rope_quantize

from .conftest import check_operator, error
from .qkv import expected_qkv, random_case
from .reference import attention as reference

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3}
QUANTIZED = {"fp8": 0.08, "int8": 0.05}
"""Errors with Q, K, V and P rounded, for normal values; `test_quantized` bounds what rounding P adds."""


@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([1, 17, 128]),
    st.sampled_from([1, 31, 129, 200]),
    st.sampled_from([32, 64]),
    st.sampled_from(list(BOUNDS)),
)
def test_any_length(seed: int, queries: int, keys: int, head_dim: int, dtype: torch.dtype) -> None:
    """Views with gaps between batch items, heads, tokens and rows."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 3, queries + 1, head_dim + 8, generator=g).to(dtype)[:, :2, 1:, :head_dim]
    k, v = (
        torch.randn(2, keys + 1, 2, head_dim, generator=g)[:, :keys].to(dtype).transpose(1, 2)
        for _ in range(2)
    )
    out = attention.launch_attention(q, k, v)
    assert tuple(out.shape) == (2, queries, 2 * head_dim)
    assert error(out, reference(q, k, v)) < BOUNDS[dtype]
    assert error(attention.attention_reference(q, k, v), reference(q, k, v)) < BOUNDS[dtype]


@pytest.mark.parametrize("format", ["fp8", "int8"])
@pytest.mark.parametrize(("tokens", "head_dim"), [(5, 32), (257, 64), (130, 128)])
def test_quantized(format: str, tokens: int, head_dim: int) -> None:
    case = random_case(tokens, 1, tokens, 2, head_dim)
    operands = norm_rope_quantize.launch_norm_rope_quantize(*case, 2, 3, format)
    out = attention.launch_attention_quantized(*operands, torch.float32)
    assert error(out, reference(*expected_qkv(case, 2, 3))) < QUANTIZED[format]
    # The reference does not round P: at most half a step of E4M3 in each weight.
    assert error(out, attention.attention_quantized_reference(*operands, torch.float32)) < 0.035


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_fewer_quantized_queries_than_keys(format: str) -> None:
    """As when the reference image's queries are left out, with a batch."""
    case = random_case(2, 2, 200, 2, 32)
    q, q_scale, *others = norm_rope_quantize.launch_norm_rope_quantize(*case, 2, 3, format)
    operands = (q[:, :, :70], q_scale[:, :, :70].contiguous(), *others)
    out = attention.launch_attention_quantized(*operands, torch.float32)
    assert error(out, attention.attention_quantized_reference(*operands, torch.float32)) < 0.035


def test_small_weights_are_not_lost_when_p_is_rounded() -> None:
    """299 keys of weight 2^-10, below E4M3's numbers but for the offset: times 448 they are exact."""
    q, k = torch.zeros(1, 1, 1, 32), torch.zeros(1, 1, 300, 32)
    q[..., 0] = k[:, :, 0, 0] = 1
    q_scale = torch.full((1, 1, 1), 10 * math.log(2) * math.sqrt(32))
    v = torch.ones(1, 1, 32, 384)
    v[..., 0], v[..., 300:] = 0, 0
    codes = [x.to(torch.float8_e4m3fn) for x in (q, k, key_order.interleave(v))]
    one = torch.ones(1, 1, 3)
    out = attention.launch_attention_quantized(codes[0], q_scale, codes[1], one, codes[2], one, torch.float32)
    assert error(out, torch.full((1, 1, 32), 299 / 1024 / (1 + 299 / 1024))) < 1e-5


def test_block_scales_of_very_different_sizes() -> None:
    """V's block scales are applied when the accumulator is rescaled: from large to small and back."""
    case = random_case(3, 1, 384, 1, 64)
    qkv = case[0]
    qkv[:, 128:256, 128:] *= 1e-4
    qkv[:, 256:, 128:] *= 1e3
    operands = norm_rope_quantize.launch_norm_rope_quantize(*case, 1, 0, "fp8")
    out = attention.launch_attention_quantized(*operands, torch.float32)
    assert error(out, attention.attention_quantized_reference(*operands, torch.float32)) < 0.035


def test_smoothing_removes_the_keys_common_offset() -> None:
    """Keys that share a large vector: INT8 subtracts their mean, FP8 does not."""
    case = random_case(4, 1, 140, 1, 64)
    case[0][..., 64:128] += 8 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    case[1].fill_(1), case[2].fill_(0)  # no rotation, so that the offset is common to all
    wanted = reference(*expected_qkv(case, 1, 0))
    errors = {
        format: error(
            attention.launch_attention_quantized(
                *norm_rope_quantize.launch_norm_rope_quantize(*case, 1, 0, format), torch.float32
            ),
            wanted,
        )
        for format in ("fp8", "int8")
    }
    assert errors["int8"] < 0.06
    assert errors["int8"] < errors["fp8"]


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((1, 1, 3, 32), 200.0)
    k = torch.linspace(-200, 200, 40)[None, None, :, None].expand(1, 1, 40, 32).contiguous()
    v = torch.randn(1, 1, 40, 32)
    assert error(attention.launch_attention(q, k, v), v[:, :, -1].expand(1, 3, 32)) < 1e-5


def test_the_operators_and_their_refusals() -> None:
    q = torch.randn(1, 1, 4, 32)
    check_operator(attention.attention_op, (q, q, q))
    case = random_case(0, 1, 7, 1, 32)
    operands = norm_rope_quantize.norm_rope_quantize_reference(*case, 1, 0, "int8")
    check_operator(attention.attention_quantized_op, (*operands, torch.float32))
    with pytest.raises(KontextError, match="heads of 32, 64, 128 channels, not 48"):
        attention.launch_attention(*[torch.randn(1, 1, 4, 48)] * 3)
    with pytest.raises(KontextError, match="E4M3, or INT8 with E4M3 values"):
        attention.launch_attention(q.to(torch.int8), q.to(torch.int8), q)
    with pytest.raises(KontextError, match="at least one key"):
        attention.launch_attention(q, q[:, :, :0], q[:, :, :0])
    q_codes, q_scale, k_codes, k_scale, v_codes, v_scale = operands
    with pytest.raises(
        KontextError, match=r"FP8 attention needs compute capability 8.9 \(Ada\), this GPU has 8.0"
    ):
        attention.plan_attention(q_codes, k_codes, v_codes, q, (q_scale, k_scale, v_scale), arch=80)
    with pytest.raises(KontextError, match=r"need compute capability 8.0 \(Ampere\), this GPU has 7.5"):
        attention.plan_attention(q, q, q, q, arch=75)
