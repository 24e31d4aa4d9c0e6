"""Pictures of every mode and colour profile as upright 8-bit sRGB, which the model takes."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from ..errors import KontextError
from .picture_limits import check_pixels

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsProfile

SRGB_LEVELS = 3
"""A profile is sRGB itself if it moves no colour by more: the profiles of that name differ a little."""

DARK = 1 << 13
"""16-bit grey that stays below looks as if it had been stored with fewer bits."""

PROFILE_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK", "Lab ": "LAB"}
"""A profile's colour space → the mode of pictures that it describes."""


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit sRGB, rotated as its EXIF data says, transparency over white.

    Colours pass through the picture's ICC profile, if it has one. Grey of 16 bits is scaled from 0 … 65535, grey of 32
    bits from 0 … 255 if none is above, and of floats from 0 … 1 or, if the largest is above 16, from 0 … 255.

    Warns:
        UserWarning: parts of it are transparent, its colour profile cannot be used, or its 16-bit grey is very dark.

    Raises:
        KontextError: not a PIL.Image.Image, too large, of values in no known range, or its file is damaged.
    """
    if not isinstance(image, Image.Image):
        raise KontextError(f"a picture must be a PIL.Image.Image, not {type(image).__name__}")
    check_pixels(image, "the picture")
    try:
        image.load()  # PIL.Image.open does not decode
    except (OSError, SyntaxError, ValueError) as error:
        raise KontextError(f"the picture cannot be read: {error}") from None
    profile = image.info.get("icc_profile")
    image = upright(image)
    if image.mode == "F":
        image = grey_of_floats(image)
    elif image.mode.startswith("I"):
        image = grey_of_integers(image)
    alpha = None
    try:
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
            alpha = image.getchannel("A")
            image = image.convert("RGB")
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGB")
    except ValueError as error:  # of a damaged palette
        raise KontextError(f"the picture cannot be read: {error}") from None
    image = to_srgb(image, profile)
    if alpha is not None and alpha.getextrema() != (255, 255):
        warnings.warn("transparent parts of the picture become white", stacklevel=2)
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def upright(image: Image.Image) -> Image.Image:
    """The picture rotated as its EXIF data says; as it is, if they are damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # Pillow reads them without a list of what it raises
        return image


def grey_of_integers(image: Image.Image) -> Image.Image:
    """8-bit grey of 16-bit or 32-bit grey, which Pillow would clip at 255."""
    values = np.asarray(image).astype(np.float32)
    if values.min() < 0 or values.max() > 65535:
        raise KontextError(
            f"the picture's grey goes from {values.min():g} to {values.max():g}: 0 to 65535 is expected of integers"
        )
    if image.mode == "I" and values.max() <= 255:
        return Image.fromarray(values.astype(np.uint8))
    if 0 < values.max() < DARK:
        warnings.warn(
            f"the picture's 16-bit grey only goes up to {values.max():g} of 65535: if it has fewer bits, scale it",
            stacklevel=3,
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def grey_of_floats(image: Image.Image) -> Image.Image:
    """8-bit grey of floats, which Pillow would take for 0 … 255 whatever they are."""
    values = np.asarray(image, np.float32)
    least, most = float(values.min()), float(values.max())
    if not (least >= 0 and (most <= 1 or 16 < most <= 255)):  # also for NaN
        raise KontextError(
            f"the picture's grey goes from {least:g} to {most:g}: 0 to 1, or 0 to 255, is expected of floats"
        )
    return Image.fromarray(np.rint(values * 255 if most <= 1 else values).astype(np.uint8))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture without transparency in sRGB. Without a profile, RGB and grey are taken for sRGB, and Lab for CIE's."""
    if profile is None and image.mode != "LAB":
        return converted(image)
    from PIL import ImageCms  # few pictures need it

    try:
        if profile is None:
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if is_srgb(source):
                return converted(image)
        return through(in_mode_of(image, source.profile.xcolor_space), source)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        warnings.warn(f"the picture's colour profile is ignored: {error}", stacklevel=3)
        return converted(image)


def through(image: Image.Image, profile: ImageCmsProfile) -> Image.Image:
    """A picture whose values a profile describes, in sRGB."""
    from PIL import ImageCms

    result = ImageCms.profileToProfile(
        image,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert result is not None  # it is with inPlace=True only
    return result


def is_srgb(profile: ImageCmsProfile) -> bool:
    """Whether the colours of a profile are sRGB's, by what becomes of a grid of colours; names do not tell."""
    if profile.profile.xcolor_space != "RGB ":
        return False
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    found = np.asarray(through(Image.fromarray(grid), profile)).astype(int)
    return bool(np.abs(found - grid).max() <= SRGB_LEVELS)


def in_mode_of(image: Image.Image, space: str) -> Image.Image:
    """The picture in the mode whose values a profile of a colour space describes. Raises ValueError for another's."""
    mode = PROFILE_MODES.get(space)
    if mode is None or (image.mode != mode and "CMYK" in (image.mode, mode)):
        raise ValueError(f"it describes {space.strip()} colours, and the picture has {image.mode}")
    return image if image.mode == mode else image.convert(mode)


def converted(image: Image.Image) -> Image.Image:
    """The picture in RGB by Pillow's own formulae."""
    try:
        return image.convert("RGB")
    except ValueError:
        raise KontextError(f"pictures of mode {image.mode} are not read: save it as RGB first") from None
