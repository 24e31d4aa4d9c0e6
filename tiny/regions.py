"""Where an edit of the tiny world changes its picture, and where it must not: an `Edit` in, masks [128, 128] out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from . import scenes
from .edits import Edit
from .scenes import UNIT, Scene

VISIBLE = 24.0
"""Levels by which a pixel must differ to count as different."""

Picture = NDArray[np.float32]
Region = NDArray[np.bool_]


@dataclass(frozen=True)
class Regions:
    """Parts of a picture, bool [128, 128]. `kept` is what must look as in the target; between the two may be a rim."""

    changed: Region
    kept: Region
    around_things: Region
    """The target's objects, sign and character, and 3 pixels around them."""


def edited_regions(edit: Edit) -> Regions:
    """What an edit may change and what it must keep, by its kind: effects, styles and drawings change the whole
    picture, a new background all but the things on it, an edit of a character everything around it too."""
    target = edit.target
    things = things_of(target)
    everything = np.ones((UNIT, UNIT), dtype=bool)
    around = widened(things > 0, 3)
    if edit.kind in ("effect", "style", "draw"):
        return Regions(everything, ~everything, around)
    if edit.kind == "background":
        return Regions(things <= 0.5, things > 0.5, around)
    if edit.kind == "character":
        return Regions(everything, ~around, around)
    changed = differing(edit.source or target, target)
    return Regions(changed, ~changed, around)


def untouched(edit: Edit) -> Region:
    """What must be kept and is the same in source and target: there the result must look like the source. bool [128,
    128]."""
    return edited_regions(edit).kept & ~differing(edit.source or edit.target, edit.target)


def differing(scene: Scene, other: Scene) -> Region:
    """Where two scenes differ visibly, and 2 pixels around."""
    return widened(np.abs(shown(scene) - shown(other)).max(axis=2) > VISIBLE, 2)


def things_of(scene: Scene) -> NDArray[np.float32]:
    """The share of each pixel that an object, the sign or the character covers, [128, 128] in 0..1."""
    empty = np.zeros((UNIT, UNIT), np.float32)
    return np.maximum.reduce([empty, *scenes.render_masks(scene).values()])


@lru_cache(maxsize=256)
def drawn(scene: Scene) -> NDArray[np.uint8]:
    """A rendering, cached: an edit is usually judged at several steps, with the same wrong answers."""
    picture = scenes.render(scene)
    picture.setflags(write=False)
    return picture


def shown(scene: Scene) -> Picture:
    return drawn(scene).astype(np.float32)


def widened(region: Region, pixels: int) -> Region:
    """The region, extended by `pixels` in every direction."""
    image = Image.fromarray(region.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0
