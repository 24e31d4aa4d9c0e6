"""Metadata of edits in picture files: written beside the pixels, and found again.

PNG: the chunks `kontext`, our JSON, and `parameters`, the text that other programs read. JPEG, WebP and AVIF: EXIF data
with the JSON as MakerNote, behind `kontext` and a NUL, and the text as UserComment. Other formats hold neither.
"""

from __future__ import annotations

import warnings
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from .metadata import KEY, MOST_BYTES, infotext, metadata_json
from .picture_limits import directory

MAKER_NOTE = b"kontext\0"
"""What the MakerNote begins with."""

UNICODE = b"UNICODE\0"
"""The code of a UserComment in UTF-16 (EXIF 2.32, 4.6.5). Readers take the order of bytes from A1111: big-endian."""

EXIF_FORMATS = ("JPEG", "WEBP", "AVIF")

MOST_JPEG = 65533 - len(b"Exif\0\0")
"""Bytes of EXIF data in a JPEG file's segment."""


def save_options(picture: Image.Image, file_format: str) -> dict[str, Any]:
    """What `Image.save` takes to write `picture.info["kontext"]` into a file; warns where it does not fit.

    Args:
        picture: with metadata or without.
        file_format: by Pillow's name.
    """
    metadata = picture.info.get(KEY)
    if not isinstance(metadata, dict):
        return {}
    text, parameters = metadata_json(metadata), infotext(metadata).encode("utf-8", "replace").decode()
    if file_format == "PNG":
        chunks = PngInfo()
        chunks.add_text("parameters", parameters)
        chunks.add_text(KEY, text)
        return {"pnginfo": chunks}
    if file_format not in EXIF_FORMATS:
        return {}
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {
            ExifTags.Base.MakerNote: MAKER_NOTE + text.encode(),
            ExifTags.Base.UserComment: UNICODE + parameters.encode("utf-16-be"),
        }
    )
    data = exif.tobytes()
    if file_format == "JPEG" and len(data) > MOST_JPEG:
        warnings.warn(
            f"the metadata of {len(data)} bytes do not fit into a JPEG file: it has none; PNG holds them",
            stacklevel=3,
        )
        return {}
    return {"exif": data}


def metadata_text(picture: Image.Image) -> str | None:
    """The JSON of a decoded file's metadata as it stands there, unchecked; None if it has none."""
    text = picture.info.get(KEY)
    if isinstance(text, str):
        return str(text)
    exif = picture.info.get("exif")
    note = maker_note(exif) if isinstance(exif, bytes) else b""
    return note.removeprefix(MAKER_NOTE).decode("utf-8", "replace") if note.startswith(MAKER_NOTE) else None


def maker_note(exif: bytes) -> bytes:
    """The MakerNote of EXIF data, "" if there is none. Pillow would read all entries, which may share their bytes and
    take far more memory than the file."""
    data = exif.removeprefix(b"Exif\0\0")
    pointers = [at for tag, _, _, at in directory(data) if tag == ExifTags.IFD.Exif]
    entries = directory(data, pointers[0]) if pointers else []
    found = [
        data[at : at + min(size, 2 * MOST_BYTES)]
        for tag, _, size, at in entries
        if tag == ExifTags.Base.MakerNote
    ]
    return found[0] if found else b""
