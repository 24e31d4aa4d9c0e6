"""Pictures: reading and writing files, choosing the model's size, conversion to and from arrays."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import KontextError
from ..files import replacing

Array = NDArray[np.float32]
Size = tuple[int, int]
"""(width, height) in pixels."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused as decompression bombs."""


def open_picture(path: str | Path) -> Image.Image:
    """Reads and decodes a picture file.

    Raises:
        KontextError: the file does not exist, is not a picture, is damaged, or has more than MAX_PIXELS pixels.
    """
    return read_picture(path, str(path))


def read_picture(
    file: str | Path | IO[bytes],
    name: str,
    *,
    formats: list[str] | tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Reads and decodes a picture from a path or an open file.

    Args:
        file: where to read.
        name: what messages call it.
        formats: the formats to accept, by Pillow's names; None: all.
        max_pixels: refuse larger pictures, before they are decoded.

    Raises:
        KontextError: as `open_picture`, or the picture has none of these formats.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=formats)
        check_pixels(image, name, max_pixels)  # the header has the size; nothing is decoded yet
        image.load()
    except KontextError:
        raise
    except FileNotFoundError:
        raise KontextError(f"{name} does not exist") from None
    except UnidentifiedImageError:
        readers = "Pillow can read" if formats is None else f"is {', '.join(formats)}"
        raise KontextError(f"{name} is not a picture that {readers}") from None
    except Image.DecompressionBombError:
        raise KontextError(too_large(name, max_pixels)) from None
    except Exception as error:  # damaged files: decoders raise OSError, SyntaxError, struct.error and others
        reason = getattr(error, "strerror", None) or error
        raise KontextError(f"{name} cannot be read as a picture: {reason}") from None
    return image


def too_large(what: str, max_pixels: int) -> str:
    return f"{what} has more than {max_pixels / 1e6:.3g} million pixels: scale it down first"


def check_pixels(image: Image.Image, what: str, max_pixels: int = MAX_PIXELS) -> None:
    if image.width * image.height > max_pixels:
        raise KontextError(too_large(what, max_pixels))


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, rotated as its EXIF data says, transparency over white.

    Raises:
        KontextError: not a PIL.Image.Image, too large, or its file is damaged.
    """
    if not isinstance(image, Image.Image):
        raise KontextError(f"a picture must be a PIL.Image.Image, not {type(image).__name__}")
    check_pixels(image, "the picture")
    try:
        image.load()  # PIL.Image.open does not decode
    except (OSError, SyntaxError, ValueError) as error:
        raise KontextError(f"the picture cannot be read: {error}") from None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow would clip it at 255
        grey = np.clip(np.asarray(image, np.float32) / 257, 0, 255)
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preferred_size(image: Image.Image, sizes: Sequence[Size]) -> Size:
    """The size with the nearest aspect ratio, as FLUX.1 Kontext chooses it: least |w/h - w'/h'|, then the narrower."""
    aspect = image.width / image.height
    return min(sizes, key=lambda size: (abs(aspect - size[0] / size[1]), size))


def to_array(image: Image.Image, size: Size) -> Array:
    """An RGB picture at `size` as fp32 [1, 3, height, width] in [-1, 1]."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def to_pictures(array: Array) -> list[Image.Image]:
    """Pictures of fp32 [batch, 3, height, width]; values are clipped to [-1, 1]."""
    pixels = np.clip(array * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
    return [Image.fromarray(each) for each in np.rint(pixels).astype(np.uint8).transpose(0, 2, 3, 1)]


def check_format(path: Path) -> str:
    """Pillow's name of the format of `path`'s suffix. Raises KontextError if Pillow cannot write it."""
    suffix = path.suffix.lower()
    Image.preinit()  # the common formats; importing all of them takes 60 ms
    chosen = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    if chosen not in Image.SAVE:
        raise KontextError(
            f"{path}: cannot write pictures of type {suffix or '(none)'!r}: use .png, .jpg or .webp"
        )
    return chosen


def check_writable(path: Path) -> None:
    """Raises KontextError if a picture could not be saved as `path`. Call it before the work, not after."""
    check_format(path)
    if path.is_dir():
        raise KontextError(f"{path} is a folder: name a file")
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except FileNotFoundError:
        raise KontextError(f"{path.absolute().parent} does not exist: make the folder first") from None
    except OSError as error:
        raise KontextError(f"{path} cannot be written: {error.strerror}") from None


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture in the format of its suffix; the file appears whole or not at all.

    Raises:
        KontextError: no such format, folder or permission, or no space.
    """
    file_format = check_format(path)
    try:
        with replacing(path) as temporary:
            image.save(temporary, format=file_format)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KontextError(f"{path} cannot be written: {reason}") from None
