"""How far the energy of an error lies below that of a signal, in decibels: of velocities, of layers, of pictures."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

LARGEST = 200.0
"""What is said of no error at all: fp32 itself cannot tell more from it."""


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most 200."""
    return min(10 * math.log10(signal / noise), LARGEST) if noise > 0 else LARGEST


def psnr(ours: Image.Image, theirs: Image.Image) -> float:
    """Peak signal to noise ratio of two pictures of one size; at most 100, that of equal ones."""
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return min(decibels(255.0**2, float(np.square(difference).mean())), 100.0)
