"""Masks: which part of a picture is repainted, as 8-bit grey at the output's size. White (255) is repainted, black (0)
is kept; of a mask with transparency, what is opaque is repainted."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from ..errors import KontextError
from .images import Size
from .picture_limits import check_pixels
from .rgb import grey_of_floats, grey_of_integers, upright

HALF = 128
"""The least grey that counts as white where there is no in-between: diffusers rounds grey / 255 at 0.5."""

MAX_BLUR = 1000
"""Pixels; a picture of 1 megapixel has 1000 a side."""


def to_grey(mask: Image.Image, *, holes: bool = False) -> Image.Image:
    """A mask of any mode, turned as its EXIF data says, as 8-bit grey. Colour profiles do not count.

    Args:
        mask: the picture.
        holes: of a mask with transparency, what is transparent is repainted, as OpenAI's API has it.

    Warns:
        UserWarning: it looks like the picture itself with a hole in it, which other tools repaint and this keeps.

    Raises:
        KontextError: not a PIL.Image.Image, too large, of values in no known range, or its file is damaged.
    """
    if not is_picture(mask):
        raise KontextError(f"a mask must be a PIL.Image.Image, not {type(mask).__name__}")
    check_pixels(mask, "the mask")
    try:
        mask.load()  # PIL.Image.open does not decode
        mask = upright(mask)
        if mask.mode == "F":
            return grey_of_floats(mask)
        if mask.mode.startswith("I"):
            return grey_of_integers(mask)
        if mask.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in mask.info:
            alpha = mask.convert("LA" if mask.mode == "La" else "RGBA").getchannel("A")
            if alpha.getextrema() != (255, 255):
                if holes:
                    return ImageChops.invert(alpha)
                warn_of_holes(mask.convert("L"), alpha)
                return alpha
        return mask.convert("L")
    except (OSError, SyntaxError, ValueError) as error:
        raise KontextError(f"the mask cannot be read: {error}") from None


def is_picture(mask: object) -> TypeGuard[Image.Image]:
    return isinstance(mask, Image.Image)


def warn_of_holes(grey: Image.Image, alpha: Image.Image) -> None:
    """Warns of a mask whose opaque part shows something: OpenAI's API takes the picture with a hole where to edit."""
    opaque = np.asarray(grey)[np.asarray(alpha) == 255]
    if opaque.size and opaque.min() != opaque.max():
        warnings.warn(
            "the mask is taken from its transparency: what is opaque is repainted. If it is a picture with a hole "
            "where to edit, invert its transparency",
            stacklevel=3,
        )


def check_blur(blur: object) -> None:
    """Raises KontextError unless it is a number of pixels that a mask can be blurred by."""
    if isinstance(blur, bool) or not isinstance(blur, Integral) or not 0 <= int(blur) <= MAX_BLUR:
        raise KontextError(f"mask_blur must be a whole number of pixels from 0 to {MAX_BLUR}, not {blur!r}")


def blurred(mask: Image.Image, blur: int) -> Image.Image:
    """A grey mask blurred by a Gaussian with a radius of `blur` of its own pixels."""
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def fitted(mask: Image.Image, size: Size) -> Image.Image:
    """A grey mask resized to (width, height) with Lanczos."""
    return mask if mask.size == size else mask.resize(size, Image.Resampling.LANCZOS)


def of_latents(mask: Image.Image, downscale: int) -> NDArray[np.bool_]:
    """Which latents [height / downscale, width / downscale] are repainted: those whose first pixel is white."""
    return (np.asarray(mask) >= HALF)[::downscale, ::downscale]


def note_of(mask: Image.Image, downscale: int) -> str | None:
    """What the user is warned of if a mask leaves nothing to keep, or nothing to repaint."""
    chosen = of_latents(mask, downscale)
    if chosen.all():
        return "the mask is white everywhere: all of the picture is repainted"
    if chosen.any():
        return None
    if (np.asarray(mask) >= HALF).any():
        return (
            f"the mask's white parts are too small: the model repaints squares of {downscale} pixels, and "
            "nothing is repainted"
        )
    return "the mask is black: nothing is repainted; white is"
