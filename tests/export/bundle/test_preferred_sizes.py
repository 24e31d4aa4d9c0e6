"""Preferred sizes: FLUX's own, and the same shapes for smaller models."""

from __future__ import annotations

import pytest

from kontext.export.bundle.preferred_sizes import FLUX_SIZES, preferred_sizes


def test_flux_has_its_17() -> None:
    sizes = preferred_sizes(1024, 16)
    assert len(sizes) == len(set(sizes)) == 17
    assert tuple(sizes) == FLUX_SIZES
    assert all((height, width) in sizes for width, height in sizes)


@pytest.mark.parametrize("side", [64, 128, 256, 512, 768, 1536])
def test_other_sides(side: int) -> None:
    sizes = preferred_sizes(side, 16)
    assert (side, side) in sizes
    assert sizes == sorted(set(sizes))
    for width, height in sizes:
        assert width % 16 == height % 16 == 0
        assert (height, width) in sizes
        # Within half a step of 16 in each direction, which is much at 64.
        assert abs(width * height / side**2 - 1) < 16 / side * 1.7 + 0.02


def test_one_pixel_of_latents() -> None:
    assert (16, 16) in preferred_sizes(16, 16)
