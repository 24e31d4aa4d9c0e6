"""Limits of picture files, checked in their bytes before a decoder sees them: a small file may ask for hours of work
or for more memory than there is."""

from __future__ import annotations

import re
import struct

from PIL import Image

from ..errors import KontextError

MAX_BYTES = 1 << 30
"""Of a file; uncompressed 16-bit RGBA of MAX_PIXELS has 0.8 GB."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused as decompression bombs."""

MAX_SIDE = 32_768
"""In pixels: resizing a picture of one row of MAX_PIXELS takes 25 s and 1.7 GB."""

MAX_SCANS = 64
"""Of a JPEG file. Progressive ones have about 10; each takes as long as a whole picture."""

MAX_TAGS = 1024
"""Of a TIFF file's first directory or of EXIF data; cameras write about 60."""

SHARED_BYTES = 64 << 20
"""By which the values of all tags may be longer than the file: entries that share their bytes multiply them."""

TAG_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
"""TIFF's types of values → bytes of one (TIFF 6.0, section 2, and BigTIFF)."""

TILE_WIDTH, TILE_LENGTH = 322, 323

JPEG_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])")
"""The next marker that is more than a mark in the data of a scan (ITU-T T.81, table B.1)."""
START_OF_SCAN, END_OF_IMAGE, START_OF_IMAGE, APP1 = b"\xda", b"\xd9", b"\xd8", b"\xe1"


def check_pixels(image: Image.Image, what: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raises KontextError for a picture of more than `max_pixels` or with a side above MAX_SIDE."""
    if image.width * image.height > max_pixels:
        raise KontextError(too_large(what, max_pixels))
    if max(image.size) > MAX_SIDE:
        raise KontextError(
            f"{what} is {image.width}x{image.height}: sides of at most {MAX_SIDE} pixels are read"
        )


def too_large(what: str, max_pixels: int) -> str:
    return f"{what} has more than {max_pixels / 1e6:.3g} million pixels: scale it down first"


def check_file(data: bytes, file_format: str, name: str) -> None:
    """Raises KontextError for a file whose decoding would take far more than its pixels do.

    What is damaged otherwise passes: decoders say what is wrong with it.

    Args:
        data: the whole file.
        file_format: by Pillow's name.
        name: what messages call it.
    """
    if file_format == "JPEG":
        scans, exif = jpeg_scans(data)
        if scans > MAX_SCANS:
            raise KontextError(
                f"{name} is a JPEG file of {scans} scans; at most {MAX_SCANS} are read: save it again"
            )
        check_directory(exif, name)
    elif file_format == "TIFF":
        check_directory(data, name)


def jpeg_scans(data: bytes) -> tuple[int, bytes]:
    """How many scans the first picture of a JPEG file has, and its EXIF data as Pillow puts them together."""
    scans, exif, at = 0, b"", 2
    while (found := JPEG_MARKER.search(data, at)) is not None:
        marker, at = found.group(1), found.end()
        if marker == END_OF_IMAGE:
            break
        if marker == START_OF_IMAGE or at + 2 > len(data):
            continue
        end = at + int.from_bytes(data[at : at + 2], "big")
        scans += marker == START_OF_SCAN
        if marker == APP1 and data[at + 2 : at + 8] == b"Exif\0\0":
            exif += data[at + 8 : end]
        at = end
    return scans, exif


def check_directory(data: bytes, name: str) -> None:
    """Raises KontextError if the first directory of a TIFF file, or of EXIF data, has too many entries, or values or a
    tile that would take much more memory than the file."""
    entries = directory(data.removeprefix(b"Exif\0\0"))
    size, tile = 0, {TILE_WIDTH: 1, TILE_LENGTH: 1}
    for tag, kind, count, value in entries:
        size += min(count * TAG_BYTES.get(kind, 0), len(data))  # no more can be read
        if tag in tile and kind in (3, 4):
            tile[tag] = value
    pixels = tile[TILE_WIDTH] * tile[TILE_LENGTH]
    if len(entries) > MAX_TAGS or size > len(data) + SHARED_BYTES or pixels > MAX_PIXELS:
        raise KontextError(f"{name} cannot be read as a picture: its tags are damaged")


def directory(data: bytes, start: int | None = None) -> list[tuple[int, int, int, int]]:
    """(tag, type, count, value or offset) of the entries of a TIFF's directory that begins at `start`, or the first
    one; no more than there are, nor many more than MAX_TAGS."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        if big:
            (start,) = struct.unpack_from(f"{order}Q", data, 8) if start is None else (start,)
            (count,) = struct.unpack_from(f"{order}Q", data, start)
        else:
            (start,) = struct.unpack_from(f"{order}I", data, 4) if start is None else (start,)
            (count,) = struct.unpack_from(f"{order}H", data, start)
    except (struct.error, OverflowError):
        return []
    entry, first = (
        (struct.Struct(f"{order}HHQQ"), start + 8) if big else (struct.Struct(f"{order}HHII"), start + 2)
    )
    found = []
    for number in range(min(count, MAX_TAGS + 1, max(0, len(data) - first) // entry.size)):
        tag, kind, values, value = entry.unpack_from(data, first + number * entry.size)
        if order == ">" and values * TAG_BYTES.get(kind, 0) <= 2:
            value >>= 48 if big else 16  # a short number stands in the first bytes
        found.append((tag, kind, values, value))
    return found
