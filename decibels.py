"""Signal-to-noise ratios in decibels: of velocities, of layers' outputs, of pictures."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

LARGEST = 200.0
"""Returned for no error at all; rounding in fp32 alone leaves less."""

LARGEST_PSNR = 100.0
"""Returned for equal pictures."""


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies, at most 200."""
    return min(10 * math.log10(signal / noise), LARGEST) if noise > 0 else LARGEST


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures of one size, at most 100."""
    error = np.asarray(picture, np.float64) - np.asarray(reference, np.float64)
    return min(decibels(255.0**2, float(np.square(error).mean())), LARGEST_PSNR)
