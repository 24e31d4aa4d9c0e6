"""Finished pictures as files for callers."""

from __future__ import annotations

import io

from PIL import Image

from ..runtime.picture_metadata import save_options
from ..runtime.server.jobs import png

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
QUALITY = 95
"""Of JPEG and WebP files, unless the caller asks for another."""


def encode(picture: Image.Image, file_format: str, quality: int | None, *, metadata: bool) -> bytes:
    """The file of a picture in one of MEDIA_TYPES, with what made it if `metadata`."""
    if file_format == "png":
        return png(picture, metadata=metadata)
    file, kind = io.BytesIO(), file_format.upper()
    options = save_options(picture, kind) if metadata else {}
    picture.save(file, kind, quality=QUALITY if quality is None else quality, **options)
    return file.getvalue()
