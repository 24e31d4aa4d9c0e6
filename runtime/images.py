"""Pictures in and out: opening what users have, fitting it to sizes the model works at, arrays and back."""

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
"""Larger pictures are taken for decompression bombs."""


def open_picture(path: str | Path) -> Image.Image:
    """Reads a picture file whole.

    Raises:
        KontextError: there is no such file, it is not a picture, it is damaged, or it has more than MAX_PIXELS.
    """
    return read_picture(path, str(path))


def read_picture(
    file: str | Path | IO[bytes],
    name: str,
    *,
    formats: list[str] | tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Reads a picture whole from a path or an open file; `name` is what messages call it.

    Raises:
        KontextError: as `open_picture`; or it is in none of `formats` (Pillow's names), if those are given.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=formats)
        check_pixels(image, name, max_pixels)  # the size is in the header; nothing is decoded yet
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
    except (
        Exception
    ) as fault:  # decoders raise OSError, SyntaxError, struct.error and others on damaged files
        reason = getattr(fault, "strerror", None) or fault
        raise KontextError(f"{name} cannot be read as a picture: {reason}") from None
    return image


def too_large(what: str, max_pixels: int) -> str:
    return f"{what} has more than {max_pixels / 1e6:.3g} million pixels: scale it down first"


def check_pixels(image: Image.Image, what: str, max_pixels: int = MAX_PIXELS) -> None:
    if image.width * image.height > max_pixels:
        raise KontextError(too_large(what, max_pixels))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says, transparency over white, 16 bits to 8, in RGB."""
    if not isinstance(image, Image.Image):
        raise KontextError(f"a picture must be a PIL.Image.Image, not {type(image).__name__}")
    check_pixels(image, "the picture")
    try:
        image.load()  # it may have been opened only
    except (OSError, SyntaxError, ValueError) as fault:
        raise KontextError(f"the picture cannot be read: {fault}") from None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow would cut them off at 255
        grey = np.clip(np.asarray(image, np.float32) / 257, 0, 255)
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preferred_size(image: Image.Image, sizes: Sequence[Size]) -> Size:
    """The size nearest in aspect ratio, by the rule of FLUX.1 Kontext: least |w/h - w'/h'|, then the narrower."""
    aspect = image.width / image.height
    return min(sizes, key=lambda size: (abs(aspect - size[0] / size[1]), size))


def to_array(image: Image.Image, size: Size) -> Array:
    """An RGB picture at `size` as fp32 [1, 3, height, width] in [-1, 1]."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def to_pictures(array: Array) -> list[Image.Image]:
    """[batch, 3, height, width], nominally in [-1, 1], as pictures; what is beyond is clipped."""
    pixels = np.clip(array * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
    return [Image.fromarray(each) for each in np.rint(pixels).astype(np.uint8).transpose(0, 2, 3, 1)]


def check_format(path: Path) -> str:
    """Pillow's name of the format of `path`'s suffix. Raises KontextError where Pillow can write none."""
    suffix = path.suffix.lower()
    Image.preinit()  # PNG, JPEG and few more; all formats together take 60 ms to import
    chosen = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    if chosen not in Image.SAVE:
        raise KontextError(
            f"{path}: cannot write pictures of type {suffix or '(none)'!r}: use .png, .jpg or .webp"
        )
    return chosen


def check_writable(path: Path) -> None:
    """Raises KontextError if a picture could not be saved as `path`; asked before the work, not after it."""
    check_format(path)
    if path.is_dir():
        raise KontextError(f"{path} is a folder: name a file")
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except FileNotFoundError:
        raise KontextError(f"{path.absolute().parent} does not exist: make the folder first") from None
    except OSError as fault:
        raise KontextError(f"{path} cannot be written: {fault.strerror}") from None


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture in the format of its suffix; the file appears whole or not at all.

    Raises:
        KontextError: no such format, folder or permission, or no space.
    """
    file_format = check_format(path)
    try:
        with replacing(path) as temporary:
            image.save(temporary, format=file_format)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise KontextError(f"{path} cannot be written: {reason}") from None
