"""Differences within a region: against arithmetic by hand and published colour differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from kontext.bench.edit_fidelity.kept import compare_region, delta_e, masked_psnr, masked_ssim

PICTURE = np.random.default_rng(0).integers(40, 200, (48, 64, 3), np.uint8)
REGION = np.zeros((48, 64), bool)
REGION[8:40, 10:60] = True


def image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


def test_psnr_by_hand() -> None:
    """An error of 5 levels everywhere in the region: 20 log10(255 / 5); of 5 in one of three channels: 10 log10(3)
    more; whatever the rest of the picture is."""
    other = PICTURE.copy()
    other[REGION] += 5
    other[~REGION] = 0
    assert masked_psnr(image(other), image(PICTURE), REGION) == pytest.approx(20 * math.log10(255 / 5))
    other[REGION] = PICTURE[REGION]
    other[REGION, 0] += 5
    expected = 20 * math.log10(255 / 5) + 10 * math.log10(3)
    assert masked_psnr(image(other), image(PICTURE), REGION) == pytest.approx(expected)


def test_what_is_outside_does_not_count() -> None:
    other = PICTURE.copy()
    other[~REGION] = 255 - other[~REGION]
    assert compare_region(image(other), image(PICTURE), REGION) == pytest.approx(
        {"psnr": 100, "ssim": 1, "delta_e": 0}
    )
    other[20, 20] = 0
    found = compare_region(image(other), image(PICTURE), REGION)
    assert None not in found.values()
    assert found["psnr"] < 100  # type: ignore[operator]
    assert found["ssim"] < 1  # type: ignore[operator]
    assert found["delta_e"] > 0  # type: ignore[operator]


def test_ssim_of_the_whole_picture_is_scikit_image_s() -> None:
    """Which averages over the pixels whose window is inside the picture too."""
    from skimage.metrics import structural_similarity

    other = np.clip(PICTURE + np.random.default_rng(1).normal(0, 9, PICTURE.shape), 0, 255).astype(np.uint8)
    expected = structural_similarity(other, PICTURE, channel_axis=2, data_range=255)
    assert masked_ssim(image(other), image(PICTURE), np.ones((48, 64), bool)) == pytest.approx(expected)


def test_small_regions_say_nothing() -> None:
    few = np.zeros((48, 64), bool)
    few[:7, :9] = True
    assert compare_region(image(PICTURE), image(PICTURE), few) == dict.fromkeys(("psnr", "ssim", "delta_e"))
    few[:8, :8] = True
    found = compare_region(image(PICTURE), image(PICTURE), few)
    assert found["psnr"] == 100
    assert found["ssim"] is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
        ((50, 2.8361, -74.0200), (50, 0, -82.7485), 3.4412),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000_of_sharma_s_pairs(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    """Table 1 of Sharma, Wu and Dalal 2005, by the library that `delta_e` uses."""
    from skimage.color import deltaE_ciede2000

    assert deltaE_ciede2000(np.array(first), np.array(second)) == pytest.approx(expected, abs=5e-5)


def test_delta_e_of_greys_by_hand() -> None:
    """Greys differ in lightness alone: ΔE = |ΔL| / (1 + 0.015 (L − 50)² / √(20 + (L − 50)²)) at their mean L."""

    def lightness(level: int) -> float:
        linear = ((level / 255 + 0.055) / 1.055) ** 2.4
        return 116 * linear ** (1 / 3) - 16

    dark, light = (image(np.full((4, 5, 3), level)) for level in (100, 140))
    low, high = lightness(100), lightness(140)
    away = ((low + high) / 2 - 50) ** 2
    expected = (high - low) / (1 + 0.015 * away / math.sqrt(20 + away))
    found = delta_e(dark, light)
    assert found.shape == (4, 5)
    assert found == pytest.approx(np.full((4, 5), expected), abs=1e-2)
