"""QK norm, RoPE and quantization in one pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import key_order, rope
from kontext.model.rope import position_ids, rope_tables

from .conftest import check_operator, error
from .reference import rope as reference

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]


def draw(seed: int, batch: int, tokens: int, heads: int, head_dim: int, size: float = 1.0) -> Case:
    g = torch.Generator().manual_seed(seed)
    width = 3 * heads * head_dim
    qkv = (torch.randn(batch, tokens, width + 16, generator=g) * size)[
        ..., :width
    ]  # a view, as in single blocks
    axes = {32: (8, 12, 12), 64: (8, 28, 28), 128: (16, 56, 56)}[head_dim]
    cos, sin = rope_tables(position_ids(1, 1, tokens), axes, 10_000.0)
    return qkv, cos, sin, [1 + torch.randn(head_dim, generator=g) / 4 for _ in range(4)]


def expected(case: Case, heads: int, text: int) -> list[torch.Tensor]:
    """q, k, v in float64."""
    qkv, cos, sin, norms = case
    parts = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    is_text = (torch.arange(qkv.shape[1]) < text)[:, None]
    weights = [torch.where(is_text, norms[0], norms[2]), torch.where(is_text, norms[1], norms[3])]
    return [
        *(reference(part, weight, cos, sin) for part, weight in zip(parts, weights, strict=False)),
        parts[2].double(),
    ]


@settings(max_examples=5, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([1, 5, 128, 131]),
    st.sampled_from([32, 64]),
    st.sampled_from([0, 3, 200]),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_norm_and_rotation(seed: int, tokens: int, head_dim: int, text: int, size: float) -> None:
    case = draw(seed, 2, tokens, 2, head_dim, size)
    q, k, _ = expected(case, 2, text)
    for out in (rope.launch_norm_rope(*case, 2, text), rope.norm_rope(*case, 2, text)):
        assert error(out[0], q) < 1e-5
        assert error(out[1], k) < 1e-5


@pytest.mark.parametrize("format", ["fp8", "int8"])
@pytest.mark.parametrize(("tokens", "head_dim"), [(37, 32), (128, 64), (150, 128)])
def test_quantized_operands(format: str, tokens: int, head_dim: int) -> None:
    case = draw(tokens, 2, tokens, 2, head_dim)
    q, k, v = expected(case, 2, 11)
    bound = {"fp8": 0.04, "int8": 0.02}[format]
    mean = k.mean(2, keepdim=True) if format == "int8" else 0
    for out in (
        rope.launch_norm_rope_quantize(*case, 2, 11, format),
        rope.norm_rope_quantize(*case, 2, 11, format),
    ):
        q_codes, q_scale, k_codes, k_scale, v_codes, v_scale = out
        assert error(q_codes.float() * q_scale[..., None], q) < bound
        by_key = k_scale.repeat_interleave(128, 2)[:, :, :tokens, None]
        assert error(k_codes.float() * by_key, k - mean) < bound
        assert tuple(v_codes.shape) == (2, 2, head_dim, rope.padded(tokens))
        order = [
            16 * (key // 16) + 4 * (key % 8 // 2) + 2 * (key % 16 // 8) + key % 2
            for key in range(v_codes.shape[3])
        ]
        values = v_codes.float()[..., order] * v_scale.repeat_interleave(128, 2)[:, :, None]
        assert error(values[..., :tokens].transpose(2, 3), v) < 0.04
        assert not values[..., tokens:].any()


def test_the_order_of_keys_is_undone() -> None:
    keys = torch.arange(48)
    first = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    assert key_order.interleave(keys)[:18].tolist() == [*first, 16, 17]
    assert torch.equal(key_order.deinterleave(key_order.interleave(keys)), keys)


def test_a_row_of_zeros_has_scales_and_no_nan() -> None:
    case = draw(0, 1, 9, 1, 32)
    case[0].zero_()
    for tensor in rope.launch_norm_rope_quantize(*case, 1, 0, "int8"):
        assert torch.isfinite(tensor.float()).all()


def test_the_operators_and_their_refusals() -> None:
    qkv, cos, sin, norms = draw(0, 1, 7, 2, 32)
    check_operator(rope.norm_rope_op, (qkv, cos, sin, norms, 2, 3))
    check_operator(rope.norm_rope_quantize_op, (qkv, cos, sin, norms, 2, 3, "fp8"))
    with pytest.raises(KontextError, match="heads of 32, 64, 128 channels, not 16"):
        rope.launch_norm_rope(qkv, cos, sin, norms, 4, 3)
    with pytest.raises(KontextError, match=r"tables must be \[7, 16\], not \[6, 16\]"):
        rope.launch_norm_rope(qkv, cos[:6], sin[:6], norms, 2, 3)
