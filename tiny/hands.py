"""Hands that draw scenes: the usual one, random others that training sees, and one in a style that only tests see.

A hand decides everything about a picture that its scene does not say: outlines, forms, sizes, how far things lie from
their places, tones of colours, shades, and wear (blur, grain, JPEG). Whatever it decides of one thing depends on that
thing alone, so that the same hand draws what an edit keeps in the same way before and after.
"""

from __future__ import annotations

import colorsys
import io
import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from PIL.JpegImagePlugin import JpegImageFile

from .draw import OUTLINE, Canvas, Colour

PITCH = 40
"""Units between two neighbouring places."""

USUAL_SIZE = 36
"""Of the largest object beside others, in units."""

DARK: Colour = (38, 36, 44)
"""The usual ink."""

SHADES = ("gradient", "plain", "sideways", "corners")

OTHER_PALETTE: dict[str, Colour] = {
    "red": (255, 0, 0),
    "orange": (255, 165, 0),
    "yellow": (255, 255, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "purple": (128, 0, 128),
    "pink": (255, 105, 180),
    "white": (255, 255, 255),
    "background white": (245, 245, 245),
    "background grey": (128, 128, 128),
    "background yellow": (240, 230, 140),
    "background green": (144, 238, 144),
    "background blue": (173, 216, 230),
    "background pink": (255, 192, 203),
    "background purple": (216, 191, 216),
    "background orange": (255, 218, 185),
}
"""Of CSS's named colours."""


@dataclass(frozen=True)
class Hand:
    """How scenes are drawn. The defaults are the usual hand's; lengths are in units of 1/128 of the picture.

    Args:
        seed: decides offsets, sizes, turns and tones of single things.
        outline: width of outlines, 0 for none.
        ink: colour of outlines.
        spread: how far things may lie from their places, in each direction.
        size: of objects, as a share of the scene's.
        turn: how far objects may be turned, in degrees.
        form: -1 to 1, between thin and thick forms of each shape.
        plain: hard edges, and hearts of two half circles.
        tone: how far colours may lie from the usual ones: 0 not at all, 1 as far as their names allow.
        other_palette: colours are `OTHER_PALETTE`'s.
        shade: of the background, one of `SHADES`.
        blur, grain: radius in units; standard deviation in levels.
        quality: of JPEG compression; 0: none.
    """

    seed: int = 0
    outline: float = OUTLINE
    ink: Colour = DARK
    spread: float = 0.0
    size: float = 1.0
    turn: float = 0.0
    form: float = 0.0
    plain: bool = False
    tone: float = 0.0
    other_palette: bool = False
    shade: str = "gradient"
    blur: float = 0.0
    grain: float = 0.0
    quality: int = 0

    def dice(self, *what: object) -> random.Random:
        """The same numbers for the same thing, on every machine."""
        return random.Random("/".join(map(str, (self.seed, *what))))

    def offset(self, thing: str) -> tuple[float, float]:
        """By how much a thing lies off its place, in units."""
        dice = self.dice("offset", thing)
        return dice.uniform(-self.spread, self.spread), dice.uniform(-self.spread, self.spread)

    def angle(self, thing: str) -> int:
        """By how many degrees a thing is turned: one of nine, so that its masks can be kept."""
        return round(self.dice("turn", thing).randint(-4, 4) * self.turn / 4)

    def tone_of(self, name: str, usual: Colour, background: bool = False) -> Colour:
        """The colour that this hand means by a name, of objects or of backgrounds."""
        key = f"background {name}" if background else name
        if self.other_palette and key in OTHER_PALETTE:
            return OTHER_PALETTE[key]
        return toned(usual, self.tone, self.seed, key) if self.tone else usual

    def shaded(self, canvas: Canvas) -> Canvas:
        """A background [height, width, 3] of one colour, with this hand's shade."""
        height, width = canvas.shape[:2]
        return (canvas * shade(self.shade, width, height)[..., None]).clip(0, 255)

    def worn(self, canvas: Canvas, scale: float) -> Canvas:
        """A finished picture [height, width, 3] with blur, grain and JPEG's traces; `scale` is pixels per unit."""
        if self.blur:
            image = Image.fromarray(np.rint(canvas).astype(np.uint8))
            canvas = np.asarray(image.filter(ImageFilter.GaussianBlur(self.blur * scale)), dtype=np.float32)
        if self.grain:
            noise = np.random.default_rng(self.seed).normal(0, self.grain, canvas.shape[:2])
            canvas = (canvas + noise.astype(np.float32)[..., None]).clip(0, 255)
        if self.quality:
            file = io.BytesIO()
            Image.fromarray(np.rint(canvas).astype(np.uint8)).save(file, "JPEG", quality=self.quality)
            file.seek(0)
            canvas = np.asarray(JpegImageFile(file), dtype=np.float32)
        return canvas

    def unworn(self) -> Hand:
        """The same hand without grain and JPEG's traces, which no answer need repeat."""
        return replace(self, grain=0.0, quality=0)


USUAL = Hand()

HELD_OUT = Hand(
    seed=1,
    outline=1.0,
    ink=(0, 0, 0),
    spread=4.0,
    size=0.9,
    form=-0.8,
    plain=True,
    other_palette=True,
    shade="plain",
)
"""A style of its own, which training never sees: as a few lines of Pillow draw it."""


@lru_cache(maxsize=4096)
def toned(usual: Colour, tone: float, seed: int, key: str) -> Colour:
    """A colour of the same name: hue within 3 degrees, and lighter, darker, paler or stronger."""
    dice = random.Random(f"{seed}/tone/{key}")
    hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in usual))
    if saturation > 0.1:
        hue += tone * dice.uniform(-3, 3) / 360
        saturation *= 1 + tone * dice.uniform(-0.2, 0.2)
    value *= 1 + tone * dice.uniform(-0.1, 0.1)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(value, 1))
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache(maxsize=16)
def shade(name: str, width: int, height: int) -> NDArray[np.float32]:
    """Factors of a background's brightness [height, width]."""
    if name == "gradient":  # slightly lighter at the top and darker at the bottom
        factor = np.linspace(1.035, 0.945, height, dtype=np.float32)[:, None]
    elif name == "sideways":
        factor = np.linspace(1.03, 0.95, width, dtype=np.float32)[None, :]
    elif name == "corners":
        across, down = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in (width, height))
        factor = 1.03 - 0.18 * (across[None, :] ** 2 + down[:, None] ** 2)
    else:
        factor = np.ones((1, 1), np.float32)
    return np.broadcast_to(factor, (height, width))


def sample_hand(rng: np.random.Generator) -> Hand:
    """A random hand; things that it enlarges lie closer to their places, so that neighbours do not overlap."""
    spread = float(rng.uniform(0, 6))
    largest = min((PITCH - 2 * spread + 4) / USUAL_SIZE, 1.1)
    outlined = rng.random() < 0.7
    return Hand(
        seed=int(rng.integers(1, 1 << 31)),
        outline=round(float(rng.uniform(0.6, 2.6)), 1) if outlined else 0.0,
        ink=DARK if rng.random() < 0.6 else grey(int(rng.integers(0, 90))),
        spread=spread,
        size=round(float(rng.uniform(0.65, largest)), 2),
        turn=float(rng.choice([0.0, 8.0, 16.0])),
        form=float(rng.choice([-0.5, 0.0, 0.0, 0.5, 1.0])),
        tone=float(rng.choice([0.0, 0.5, 1.0])),
        shade=str(rng.choice(SHADES)),
        blur=float(rng.choice([0.0, 0.0, 0.4, 0.7])),
        grain=float(rng.choice([0.0, 0.0, 2.0, 4.0])),
        quality=int(rng.choice([0, 0, 90, 75])),
    )


def grey(level: int) -> Colour:
    return level, level, level
