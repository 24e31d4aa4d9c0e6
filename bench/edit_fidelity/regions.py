"""Where an edit may change its picture, when no scene says it: from a data set's mask, or from what the reference
changed. Masks [height, width] out, True where the picture may change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .kept import delta_e

Region = NDArray[np.bool_]
Size = tuple[int, int]
"""(width, height) in pixels."""

VISIBLE_DELTA_E = 5.0
"""Mean ΔE2000 of a neighbourhood from which on it counts as changed. An autoencoder alone moves flat areas by about 1,
and a difference of 2 is just noticeable."""

NEIGHBOURHOOD = 32
"""A neighbourhood is a square of 1/32 of the picture's shorter side, so that single pixels do not count. The region is
extended by as much."""


@dataclass(frozen=True)
class EditRegion:
    """`origin` says who knows it: "scene", "mask" or "reference"."""

    changed: Region
    origin: str


def masked_part(mask: Image.Image) -> Region | None:
    """What a set's mask says may be edited; None if it says nothing.

    MagicBrush's card: "free-form mask image (white region), can be used in mask-provided setting to limit the region to
    be edited". Its files have this region transparent, which viewers show white. So: of a mask with transparency, what
    is not opaque; of one in black and white alone, what is white. A mask in colours without transparency has lost its
    region.
    """
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:
        alpha = np.asarray(mask.convert("RGBA").getchannel("A"))
        hole: Region = alpha < 255
        if hole.any():
            return hole
    pixels = np.asarray(mask.convert("RGB"))
    white: Region = pixels.min(axis=2) >= 240
    black: Region = pixels.max(axis=2) <= 15
    return white if white.any() and (white | black).mean() > 0.98 else None


def changed_part(source: Image.Image, output: Image.Image) -> Region:
    """Where two pictures of one size differ by more than `VISIBLE_DELTA_E`, and around it."""
    from scipy import ndimage

    side = max(1, min(output.size) // NEIGHBOURHOOD)
    changed = ndimage.uniform_filter(delta_e(output, source), side) > VISIBLE_DELTA_E
    widened: Region = ndimage.maximum_filter(changed, 2 * side + 1)
    return widened


def at_size(region: Region, size: Size) -> Region:
    """The region of a picture that is resized: every pixel that a part of the region falls into."""
    if region.shape == (size[1], size[0]):
        return region
    image = Image.fromarray(region.astype(np.uint8) * 255)
    if size[0] > image.width or size[1] > image.height:
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > 0
    return np.asarray(image.resize(size, Image.Resampling.BOX)) > 0
