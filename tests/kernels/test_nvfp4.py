"""Products of NVFP4 inputs and weights, the low-rank branch and every epilogue, in the interpreter against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import blocks, nvfp4
from kontext.kernels.epilogue import Epilogue
from kontext.quant.formats.nvfp4 import NVFP4

from .conftest import check_operator, error
from .reference import code_values


def draw(
    seed: int, rows: tuple[int, int], depth: int, channels: int
) -> tuple[torch.Generator, tuple[torch.Tensor, ...], torch.Tensor]:
    """A generator, the operands from `a` to `scale`, and their product in float64 from the bundle's layout."""
    g = torch.Generator().manual_seed(seed)
    packed, w_scale, whole = NVFP4.quantize(torch.randn(depth, channels, generator=g), torch.float32)
    x = torch.randn(*rows, depth, generator=g)
    block_scale = x.abs().max().reshape(1) / (6 * 448)
    a, a_scale = blocks.quantize_blocks(x, block_scale)
    weight = code_values(packed, torch.tensor(NVFP4.codes), False) * w_scale.double().repeat_interleave(16, 0)
    codes = torch.stack([code_values(each, torch.tensor(NVFP4.codes), False) for each in a])
    scales = blocks.untile_scales(a_scale, rows[1], depth // 16).double().repeat_interleave(16, -1)
    scale = block_scale * whole
    wanted = (codes * scales) @ weight * scale.double()
    # Rows that no token owns may hold anything: a GPU's memory is not zero.
    a_scale = a_scale.clone()
    untouched = blocks.untile_scales(a_scale.view(torch.uint8), a_scale.shape[1] * 128, depth // 16).clone()
    untouched[:, rows[1] :] = 127
    a_scale = blocks.tile_scales(untouched.view(torch.float8_e4m3fn))
    return g, (a, a_scale, *nvfp4.by_output(packed, w_scale), scale), wanted


@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([(1, 1), (2, 5), (1, 140), (2, 70)]),
    st.sampled_from([16, 80, 256, 320]),
    st.sampled_from([8, 130, 270]),
    st.sampled_from([0, 1, 20]),
)
def test_products_and_epilogues(
    seed: int, rows: tuple[int, int], depth: int, channels: int, rank: int
) -> None:
    g, operands, wanted = draw(seed, rows, depth, channels)
    low = up = None
    if rank:
        low, up = torch.randn(*rows, rank, generator=g), torch.randn(rank, channels, generator=g)
        wanted = wanted + low.double() @ up.double()
    bias, gate = torch.randn(channels, generator=g), torch.randn(rows[0], channels, generator=g)
    for run in (nvfp4.launch_nvfp4_linear, nvfp4.nvfp4_linear_reference):
        joint = torch.full((rows[0], rows[1] + 3, channels + 5), float("nan"))
        out = joint[:, 2:-1, 1:-4]
        run(out, *operands, low, up, bias)
        assert error(out, wanted + bias.double()) < 1e-5
        assert joint[:, :2].isnan().all()
        assert joint[:, -1:].isnan().all()
        run(out, *operands, low, up, bias, gate)
        assert error(out, (1 + gate.double()[:, None]) * (wanted + bias.double())) < 1e-5


@pytest.mark.parametrize("arch", [100, 120])
def test_every_tile_computes_the_same(arch: int) -> None:
    g, operands, wanted = draw(arch, (1, 150), 192, 272)
    low, up = torch.randn(1, 150, 20, generator=g), torch.randn(20, 272, generator=g)
    for tile in range(len(nvfp4.tiles(arch))):
        out = torch.full((1, 150, 272), float("nan"))
        nvfp4.plan_nvfp4_linear(*operands, low, up, Epilogue(out), arch=arch, tile=tile).run()
        assert error(out, wanted + low.double() @ up.double()) < 1e-5, nvfp4.tiles(arch)[tile]


def test_nan_stays_visible() -> None:
    x = torch.randn(1, 3, 64)
    x[0, 1, 5] = float("nan")
    _, (_, _, weight, w_scale, scale), _ = draw(5, (1, 3), 64, 16)
    out = torch.zeros(1, 3, 16)
    nvfp4.launch_nvfp4_linear(out, *blocks.quantize_blocks(x, torch.ones(1)), weight, w_scale, scale)
    assert out[0, 1].isnan().all()
    assert torch.isfinite(out[0, [0, 2]]).all()


def test_the_operator_and_its_refusals() -> None:
    _, operands, _ = draw(1, (1, 3), 64, 16)
    a, a_scale, weight, w_scale, scale = operands
    out = torch.zeros(1, 3, 16)
    check_operator(nvfp4.nvfp4_linear_op, (out, *operands, None, None, None, None))
    run = nvfp4.launch_nvfp4_linear
    with pytest.raises(KontextError, match="two factors"):
        run(out, *operands, torch.randn(1, 3, 4))
    with pytest.raises(KontextError, match=r"the input's scales must be E4M3 in tiles \[1, 1, 1, 512\]"):
        run(out, a, a_scale[0], weight, w_scale, scale)
    with pytest.raises(KontextError, match=r"the weight's scales must be E4M3 in tiles \[1, 1, 512\]"):
        run(out, a, a_scale, weight, w_scale.float(), scale)
    with pytest.raises(KontextError, match="in blocks of 16"):
        run(out, a[..., :5].contiguous(), a_scale, weight[:, :5].contiguous(), w_scale, scale)
    with pytest.raises(KontextError, match=r"a scale float32 \[1\]"):
        run(out, a, a_scale, weight, w_scale, scale.half())
    with pytest.raises(KontextError, match=r"10\.0 \(Blackwell\), this GPU has 8\.9"):
        nvfp4.plan_nvfp4_linear(*operands, None, None, Epilogue(out), arch=89)
