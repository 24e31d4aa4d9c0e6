"""How much two pictures differ in one region, which pixels outside of it do not matter for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...decibels import LARGEST_PSNR, decibels

WINDOW = 7
"""Of SSIM, in pixels: scikit-image's."""

FEWEST = 64
"""Pixels of a region that says something."""


def compare_region(
    picture: Image.Image, other: Image.Image, region: NDArray[np.bool_]
) -> dict[str, float | None]:
    """PSNR [dB], SSIM and mean ΔE2000 of two RGB pictures of one size over a region, bool [height, width]; None where
    the region is too small."""
    enough = region.sum() >= FEWEST
    return {
        "psnr": masked_psnr(picture, other, region) if enough else None,
        "ssim": masked_ssim(picture, other, region) if enough else None,
        "delta_e": float(delta_e(picture, other)[region].mean()) if enough else None,
    }


def masked_psnr(picture: Image.Image, other: Image.Image, region: NDArray[np.bool_]) -> float:
    """10 log10(255² / mean squared error over the region's pixels and channels), at most 100."""
    error = np.asarray(picture, np.float64)[region] - np.asarray(other, np.float64)[region]
    return min(decibels(255.0**2, float(np.square(error).mean())), LARGEST_PSNR)


def masked_ssim(picture: Image.Image, other: Image.Image, region: NDArray[np.bool_]) -> float | None:
    """Mean of the SSIM map (Wang et al. 2004, by scikit-image) over the pixels whose whole window is in the region;
    None if there are too few."""
    from scipy import ndimage
    from skimage.metrics import structural_similarity

    whole = ndimage.minimum_filter(region, WINDOW, mode="constant", cval=0)
    if whole.sum() < FEWEST:
        return None
    _, every = structural_similarity(
        np.asarray(picture), np.asarray(other), win_size=WINDOW, channel_axis=2, data_range=255, full=True
    )
    return float(every[whole].mean())


def delta_e(picture: Image.Image, other: Image.Image) -> NDArray[np.float64]:
    """CIEDE2000 colour difference (Sharma et al. 2005) of each pixel, by scikit-image, [height, width]. 1 is hardly
    noticeable."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    found: NDArray[np.float64] = deltaE_ciede2000(
        rgb2lab(np.asarray(picture.convert("RGB"))), rgb2lab(np.asarray(other.convert("RGB")))
    )
    return found
