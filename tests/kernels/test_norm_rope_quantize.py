"""RMSNorm, RoPE and quantization of Q, K and V, in the interpreter against float64."""

from __future__ import annotations

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import norm_rope_quantize

from .conftest import check_operator, error
from .qkv import expected_qkv, random_case


@pytest.mark.parametrize("format", ["fp8", "int8"])
@pytest.mark.parametrize(("tokens", "head_dim"), [(37, 32), (128, 64), (150, 128)])
def test_codes_times_scales(format: str, tokens: int, head_dim: int) -> None:
    case = random_case(tokens, 2, tokens, 2, head_dim)
    q, k, v = expected_qkv(case, 2, 11)
    bound = {"fp8": 0.04, "int8": 0.02}[format]
    mean = k.mean(2, keepdim=True) if format == "int8" else 0
    for run in (
        norm_rope_quantize.launch_norm_rope_quantize,
        norm_rope_quantize.norm_rope_quantize_reference,
    ):
        q_codes, q_scale, k_codes, k_scale, v_codes, v_scale = run(*case, 2, 11, format)
        assert error(q_codes.float() * q_scale[..., None], q) < bound
        by_key = k_scale.repeat_interleave(128, 2)[:, :, :tokens, None]
        assert error(k_codes.float() * by_key, k - mean) < bound
        assert tuple(v_codes.shape) == (2, 2, head_dim, norm_rope_quantize.padded(tokens))
        order = [
            16 * (key // 16) + 4 * (key % 8 // 2) + 2 * (key % 16 // 8) + key % 2
            for key in range(v_codes.shape[3])
        ]
        values = v_codes.float()[..., order] * v_scale.repeat_interleave(128, 2)[:, :, None]
        assert error(values[..., :tokens].transpose(2, 3), v) < 0.04
        assert not values[..., tokens:].any()


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_scales_of_keys_with_a_common_offset(format: str) -> None:
    """The mean is larger than what is left without it: the last block's padding must not be smoothed."""
    case = random_case(1, 2, 140, 2, 64)
    case[0][..., 128:256] += 8 * torch.randn(128, generator=torch.Generator().manual_seed(2))
    case[1].fill_(1), case[2].fill_(0)  # no rotation, so that the offset is common to all keys
    out = norm_rope_quantize.launch_norm_rope_quantize(*case, 2, 0, format)
    wanted = norm_rope_quantize.norm_rope_quantize_reference(*case, 2, 0, format)
    for scales, wanted_scales in zip(out[1::2], wanted[1::2], strict=True):
        torch.testing.assert_close(scales, wanted_scales, rtol=1e-4, atol=0)


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_zeros_have_codes_of_zero_and_positive_scales(format: str) -> None:
    case = random_case(0, 1, 9, 1, 32)
    case[0].zero_()
    out = norm_rope_quantize.launch_norm_rope_quantize(*case, 1, 0, format)
    for codes, scales in zip(out[::2], out[1::2], strict=True):
        assert (codes.float() == 0).all()
        assert (scales > 0).all()


def test_the_operator_and_its_refusals() -> None:
    case = random_case(0, 1, 7, 2, 32)
    check_operator(norm_rope_quantize.norm_rope_quantize_op, (*case, 2, 3, "fp8"))
    with pytest.raises(KontextError, match="attention can be quantized to fp8 or int8, not 'fp4'"):
        norm_rope_quantize.launch_norm_rope_quantize(*case, 2, 3, "fp4")
    with pytest.raises(KontextError, match="heads of 32, 64, 128 channels, not 16"):
        norm_rope_quantize.launch_norm_rope_quantize(*case, 4, 3, "fp8")
