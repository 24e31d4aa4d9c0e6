"""Finished pictures as files for callers."""

from __future__ import annotations

import io

from PIL import Image

from ..runtime.server.jobs import png

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
QUALITY = 95
"""Of JPEG and WebP files, unless the caller asks for another."""


def encode(picture: Image.Image, file_format: str, quality: int | None) -> bytes:
    """The file of a picture in one of MEDIA_TYPES."""
    if file_format == "png":
        return png(picture)
    file = io.BytesIO()
    picture.save(file, file_format.upper(), quality=QUALITY if quality is None else quality)
    return file.getvalue()
