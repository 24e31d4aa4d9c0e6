"""Pictures: reading and writing files, choosing the model's size, conversion to and from arrays."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import KontextError
from ..files import replacing
from ..regular_files import open_regular
from .picture_formats import PLUGINS, format_of, load_plugin, other_kind, spelled
from .picture_limits import MAX_BYTES, MAX_PIXELS, check_directory, check_file, check_pixels, too_large
from .picture_metadata import save_options

Array = NDArray[np.float32]
Size = tuple[int, int]
"""(width, height) in pixels."""

FORMATS = tuple(PLUGINS)

logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # else Python prints what Pillow logs of damaged files

REDUCE_ABOVE = 24_000_000
"""Pixels of a JPEG picture from which on it is decoded smaller: it keeps 6 million or more, and the model's largest
preferred sizes have 1 million."""


def open_picture(path: str | Path, *, reduce: bool = True) -> Image.Image:
    """Reads and decodes a picture file, whatever its name says of its format.

    Args:
        path: of the file.
        reduce: as for `read_picture`.

    Raises:
        KontextError: the file does not exist, is no picture of `picture_formats`, is damaged, or is beyond
            `picture_limits`.
    """
    name = str(path)
    try:
        with open_regular(Path(path)) as file:
            return read_picture(file, name, reduce=reduce)
    except FileNotFoundError:
        raise KontextError(f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise KontextError(f"{name} cannot be read as a picture: {reason}") from None


def read_picture(
    file: IO[bytes],
    name: str,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_PIXELS,
    reduce: bool = True,
) -> Image.Image:
    """Reads and decodes a picture: the only function of this repository that lets Pillow open a file.

    Args:
        file: where to read.
        name: what messages call it.
        formats: the formats to accept, by Pillow's names.
        max_pixels: refuse larger pictures, before they are decoded.
        reduce: decode JPEG files above REDUCE_ABOVE at a half to an eighth of their sides.

    Raises:
        KontextError: it is no picture of these formats, is damaged, or is beyond `picture_limits`.
    """
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise KontextError(f"{name} has more than {MAX_BYTES >> 30} GiB: save it as JPEG or scale it down")
    found = check_format_of(data, name, formats)
    check_file(data, found, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags that the pixels do not need
            image = Image.open(io.BytesIO(data), formats=[found])
            check_pixels(image, name, max_pixels)  # the header has the size; nothing is decoded yet
            check_directory(image.info.get("exif") or b"", name)
            if reduce:
                reduce_jpeg(image)
            image.load()
    except KontextError:
        raise
    except UnidentifiedImageError:
        reason = (found == "TIFF" and tiff_samples(data)) or "its header is damaged"
        raise KontextError(f"{name} cannot be read as a picture: {reason}") from None
    except Image.DecompressionBombError:
        raise KontextError(too_large(name, max_pixels)) from None
    except MemoryError:
        raise KontextError(
            f"{name} cannot be read as a picture: it needs more memory than there is"
        ) from None
    except Exception as error:  # damaged files: decoders raise OSError, SyntaxError, struct.error and others
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
        raise KontextError(f"{name} cannot be read as a picture: {' '.join(reason.split())}") from None
    return image


def check_format_of(data: bytes, name: str, formats: tuple[str, ...]) -> str:
    """The format of a file, by Pillow's name. Raises KontextError if it is none of `formats`, with what it is, or
    cannot be read here."""
    found = format_of(data)
    if found is None or found not in formats:
        kind = other_kind(data) if found is None else f"a {spelled((found,))} picture"
        raise KontextError(f"{name} is {f'{kind}, ' if kind else ''}not a {spelled(formats)} picture")
    if not load_plugin(found):
        remedy = "pip install pillow-heif, or save" if found == "HEIF" else "update Pillow, or save"
        raise KontextError(f"{name} is a {spelled((found,))} picture: {remedy} it as PNG")
    if found == "TIFF":
        silence_libtiff()
    return found


def reduce_jpeg(image: Image.Image) -> None:
    """Lets libjpeg decode a JPEG picture of more than REDUCE_ABOVE at a half, a quarter or an eighth of its sides."""
    shrink = next((each for each in (1, 2, 4) if image.width * image.height <= each**2 * REDUCE_ABOVE), 8)
    if shrink > 1 and hasattr(image, "draft"):
        image.draft(None, (image.width // shrink, image.height // shrink))


@cache
def silence_libtiff() -> None:
    """Takes away libtiff's error handler, which prints on stderr what Pillow raises as well.

    libtiff is found behind Pillow's own library: there is one handler for the whole process, and none is restored, so
    that threads cannot meet. Where libtiff is linked into Pillow without its names (Windows), it goes on printing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def tiff_samples(data: bytes) -> str:
    """What a TIFF file holds, for a message that Pillow cannot read it, with what would help; "" if it is damaged."""
    from PIL import TiffImagePlugin

    kinds = {1: "integers", 2: "signed integers", 3: "floats"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
            stream = io.BytesIO(data)
            stream.seek(directory.next)
            directory.load(stream)
        bits = directory[TiffImagePlugin.BITSPERSAMPLE]
        kind = kinds[directory.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]]
        return f"its pixels are {len(bits)} {kind} of {bits[0]} bits; save it as PNG first"
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
    try:
        if path.is_dir():
            raise KontextError(f"{path} is a folder: name a file")
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except FileNotFoundError:
        raise KontextError(f"{path.absolute().parent} does not exist: make the folder first") from None
    except OSError as error:
        raise KontextError(f"{path} cannot be written: {error.strerror}") from None


def png_file(image: Image.Image, *, metadata: bool = True, level: int = 6) -> bytes:
    """A picture's PNG file, with what made it if `metadata`; `level` is zlib's."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=level, **(save_options(image, "PNG") if metadata else {}))
    return file.getvalue()


def save_picture(image: Image.Image, path: str | Path, *, metadata: bool = True) -> None:
    """Writes a picture in the format of its suffix; the file appears whole or not at all.

    Args:
        image: the picture.
        path: the file.
        metadata: write what made the picture, its `info["kontext"]`, where the format holds it (`picture_metadata`).

    Raises:
        KontextError: no such format, folder or permission, or no space.
    """
    path = Path(path)
    file_format = check_format(path)
    options = save_options(image, file_format) if metadata else {}
    try:
        with replacing(path) as temporary:
            image.save(temporary, format=file_format, **options)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KontextError(f"{path} cannot be written: {reason}") from None
