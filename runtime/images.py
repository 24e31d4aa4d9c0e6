"""Pictures: reading and writing files, choosing the model's size, conversion to and from arrays."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import KontextError
from ..files import replacing
from .rgb import MAX_PIXELS, check_pixels, too_large

Array = NDArray[np.float32]
Size = tuple[int, int]
"""(width, height) in pixels."""


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
        raise KontextError(f"{name} is not a picture that {readers}{tiff_samples(file)}") from None
    except Image.DecompressionBombError:
        raise KontextError(too_large(name, max_pixels)) from None
    except Exception as error:  # damaged files: decoders raise OSError, SyntaxError, struct.error and others
        reason = getattr(error, "strerror", None) or error
        raise KontextError(f"{name} cannot be read as a picture: {reason}") from None
    return image


def tiff_samples(file: str | Path | IO[bytes]) -> str:
    """What a TIFF file holds, for a message that Pillow cannot read it, with what would help; "" for other files."""
    kinds = {1: "integers", 2: "signed integers", 3: "floats"}
    try:
        with open(file, "rb") if isinstance(file, (str, Path)) else contextlib.nullcontext(file) as stream:
            stream.seek(0)
            directory = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
            stream.seek(directory.next)
            directory.load(stream)
            bits = directory[TiffImagePlugin.BITSPERSAMPLE]
            kind = kinds[directory.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]]
            return f": its pixels are {len(bits)} {kind} of {bits[0]} bits; save it as PNG first"
    except Exception:  # as for damaged files
        return ""


def preferred_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` whose aspect ratio is nearest, as FLUX.1 Kontext chooses it: least |w/h - w'/h'|, then the
    narrower."""
    aspect = size[0] / size[1]
    return min(sizes, key=lambda each: (abs(aspect - each[0] / each[1]), each))


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
            f"{path}: cannot write pictures of type {suffix or '(none)'!r}: use .png, .jpg, .webp, .avif or .tiff"
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
