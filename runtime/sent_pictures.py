"""Reference pictures as files for a server: as they are where it reads their format, smaller where it takes no more."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .images import open_picture, read_picture
from .masks import to_grey
from .rgb import upright_rgb
from .server.contract import PICTURE_FORMATS

SMALLER_PIXELS = 2_500_000
"""Of all pictures of an edit together, where the server refuses their files: about 1.5 MB of JPEG in quality 95, 2 MB
in base64. A reference is encoded at 1 MP unless `--reference-size` asks for more."""


def picture_file(path: Path) -> bytes:
    """A picture's file: unchanged if the server reads its format, else converted to PNG.

    Raises KontextError if it is not a picture.
    """
    picture = open_picture(path)
    return path.read_bytes() if picture.format in PICTURE_FORMATS else as_png(picture)


def as_sent(data: bytes, name: str) -> bytes:
    """As `picture_file`, of a file's bytes; `name` is for messages."""
    picture = read_picture(io.BytesIO(data), name)
    return data if picture.format in PICTURE_FORMATS else as_png(picture)


def as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    upright_rgb(picture).save(file, "PNG")
    return file.getvalue()


def mask_file(path: Path) -> bytes:
    """A mask's file, as `picture_file`; what other formats have becomes grey, since a mask may be in transparency."""
    picture = open_picture(path)
    if picture.format in PICTURE_FORMATS:
        return path.read_bytes()
    return grey_png(picture)


def smaller_mask(data: bytes) -> bytes:
    """A mask as a grey PNG file of the same size, unless that would be larger.

    Raises KontextError if it is not a picture.
    """
    return min(data, grey_png(read_picture(io.BytesIO(data), "the mask", reduce=False)), key=len)


def grey_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    to_grey(picture).save(file, "PNG")
    return file.getvalue()


def smaller_files(files: Sequence[bytes]) -> list[bytes]:
    """The pictures as JPEG files of at most `SMALLER_PIXELS` together; a file that this would not shrink stays.

    Raises KontextError if one is not a picture.
    """
    most = SMALLER_PIXELS / len(files)
    result = []
    for data in files:
        picture = upright_rgb(read_picture(io.BytesIO(data), "a reference picture"))
        scale = min(1.0, math.sqrt(most / (picture.width * picture.height)))
        if scale < 1:
            picture.thumbnail((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=95, subsampling=0)
        result.append(min(data, file.getvalue(), key=len))
    return result
