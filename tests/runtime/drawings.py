"""Pictures that tests edit."""

from __future__ import annotations

import numpy as np
from PIL import Image


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random colours that change slowly, so that they survive an autoencoder."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def left_half(width: int, height: int) -> Image.Image:
    """A mask, white on the left."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask
