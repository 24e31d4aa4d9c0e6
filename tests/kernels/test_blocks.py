"""NVFP4 activations: codes and scales against ml_dtypes, the tiles of scales, faults in the inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.errors import KontextError
from kontext.kernels import blocks, gelu

from .conftest import check_operator, error


def rounded(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By the kernel, into poisoned outputs: the scales' rows beyond the last token stay as they are."""
    codes, tiles = blocks.empty_blocks(x, tuple(x.shape))
    codes.fill_(255)
    tiles.view(torch.uint8).fill_(127)
    gelu.plan_gelu_join(x, None, codes, tiles, "nvfp4", None, g).run()
    return codes, tiles


def wanted(x: torch.Tensor, g: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes [..., width] and scales [..., width / 16] of fp32 x, by numpy and ml_dtypes."""
    groups = x.numpy().reshape(*x.shape[:-1], -1, 16)
    amax = np.abs(groups).max(-1)
    scales = np.minimum(amax / (np.float32(6) * np.float32(g)), np.float32(448)).astype(
        ml_dtypes.float8_e4m3fn
    )
    step = scales.astype(np.float32) * np.float32(g)
    units = np.divide(groups, step[..., None], out=np.zeros_like(groups), where=step[..., None] > 0)
    codes = units.reshape(x.shape).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return np.where(codes == 8, 0, codes), scales.astype(np.float32)  # zero has no sign here


@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([(1, 1), (2, 5)]),
    st.sampled_from([16, 48, 64, 176]),
    st.sampled_from([1e-6, 0.2, 1.0, 3.0, 1e6]),
)
def test_codes_and_scales_are_those_of_ml_dtypes(
    seed: int, rows: tuple[int, int], width: int, room: float
) -> None:
    """Bit for bit; from scales that underflow to ones that saturate. A third of the numbers lie on ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*rows, width, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, (x * 8).round() / 8, x)
    x[:, 0, :16] = 0
    g = torch.tensor([float(x.abs().max()) / (6 * 448 * room) + 1e-30])
    codes, scales = wanted(x, float(g))
    for run in (rounded, blocks.quantize_blocks):
        packed, tiles = run(x, g)
        both = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
        assert np.array_equal(both.numpy(), codes)
        found = blocks.untile_scales(tiles, x.shape[1], width // 16)
        assert np.array_equal(found.float().numpy(), scales)
        values = blocks.block_values(packed, tiles).double() * g.double()
        if 0.2 <= room <= 1:
            assert error(values, x) < 0.13


def test_ties_and_their_neighbours() -> None:
    """Every multiple of 1/64 up to 6.5 and the numbers next to it, at a step of exactly 1; oracle: ml_dtypes."""
    values = torch.arange(-416, 417) / 64
    values = torch.cat((values, torch.nextafter(values, values + 1), torch.nextafter(values, values - 1)))
    values = torch.cat((values, torch.zeros(-len(values) % 15))).view(-1, 15).clamp(-6, 6)
    rows = torch.cat((values, torch.full((len(values), 1), 6.0)), 1)  # the largest number makes the step 1
    packed, _ = rounded(rows[None], torch.ones(1))
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[0]
    theirs = torch.from_numpy(rows.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8))
    assert torch.equal(codes, torch.where(theirs == 8, 0, theirs))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 4), (129, 5), (300, 12)])
def test_tiles_of_scales(rows: int, columns: int) -> None:
    """Byte for byte as cuBLAS's documentation has them, written out here; what is beyond the end is zero."""
    scales = torch.randint(1, 120, (rows, columns), dtype=torch.uint8)
    tiles = blocks.tile_scales(scales.view(torch.float8_e4m3fn))
    across = -(-columns // 4)
    wanted = torch.zeros(-(-rows // 128) * across * 512, dtype=torch.uint8)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * across + column // 4
            wanted[512 * tile + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = scales[row, column]
    assert torch.equal(tiles.view(torch.uint8).flatten(), wanted)
    back = blocks.untile_scales(tiles, rows, columns)
    assert torch.equal(back.view(torch.uint8), scales)


@pytest.mark.parametrize("run", [rounded, blocks.quantize_blocks])
def test_faults_stay_visible_and_infinity_saturates(run: object) -> None:
    x = torch.ones(1, 2, 64)
    x[0, 0, 3], x[0, 1, 20], x[0, 1, 40] = float("nan"), float("inf"), -float("inf")
    codes, tiles = run(x, torch.ones(1))  # type: ignore[operator]
    values = blocks.block_values(codes, tiles)
    assert values[0, 0, :16].isnan().all()
    assert not values[0, 0, 16:].isnan().any()
    assert values[0, 1, 20] == -values[0, 1, 40] == 6 * 448
    assert torch.isfinite(values[0, 1]).all()


def test_the_scales_beyond_the_last_channel_are_zero() -> None:
    """A product reads whole tiles: what no block owns must not be NaN."""
    _, tiles = rounded(torch.randn(1, 2, 80), torch.ones(1))
    assert tiles.shape == (1, 1, 2, 512)
    whole = blocks.untile_scales(tiles, 2, 8).float()
    assert (whole[..., 5:] == 0).all()
    assert torch.isfinite(whole).all()


def test_refusals() -> None:
    x, g = torch.randn(1, 2, 32), torch.ones(1)
    check_operator(gelu.gelu_join_quantize_op, (x, None, "nvfp4", None, g))
    with pytest.raises(KontextError, match="in blocks of 16, not 40"):
        gelu.launch_gelu_join_quantize(torch.randn(1, 2, 40), None, "nvfp4", None, g)
    for run in (gelu.launch_gelu_join_quantize, gelu.gelu_join_quantize_reference):
        with pytest.raises(KontextError, match="a calibrated scale"):
            run(x, None, "nvfp4")
        with pytest.raises(KontextError, match="fp8 takes no block_scale"):
            run(x, None, "fp8", None, g)
        with pytest.raises(KontextError, match=r"must be float32 \[1\]"):
            run(x, None, "nvfp4", None, torch.ones(2))
