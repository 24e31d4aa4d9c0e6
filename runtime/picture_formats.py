"""Which files are pictures: the formats that are read, by the first bytes of a file and whatever its name says.

The list is short on purpose. Pillow alone reads 40 formats, some of them by starting other programs.
"""

from __future__ import annotations

import importlib
import re
from functools import cache

from PIL import Image

PLUGINS = {
    "PNG": "PngImagePlugin",
    "JPEG": "JpegImagePlugin",
    "WEBP": "WebPImagePlugin",
    "TIFF": "TiffImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "AVIF": "AvifImagePlugin",
    "HEIF": "",
}
"""Format that is read, by Pillow's name → Pillow's module for it. HEIF (HEIC) needs pillow-heif."""

NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}
"""What people call formats, where Pillow's name is another."""

HEAD = 1024
"""Bytes of a file from which its format is told."""

SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM",
    "GIF": rb"GIF8[79]a",
    "AVIF": rb"....ftyp(?:avif|avis|....(?:....)+?(?:avif|avis))",
    "HEIF": rb"....ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1)",
}
"""How files of the formats begin."""

OTHERS = {
    "a PostScript file (EPS)": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a PDF file": rb"%PDF",
    "an SVG drawing": rb"(?i:\s*(?:\xef\xbb\xbf)?\s*(?:<\?xml.*)?(?:<!.*)?<svg)",
    "a web page": rb"(?i:\s*(?:<!doctype html|<html|<head))",
    "a Windows icon (ICO)": rb"\0\0[\x01\x02]\0[^\0]",
    "a Mac icon (ICNS)": rb"icns",
    "a Photoshop file (PSD)": rb"8BPS",
    "a JPEG 2000 picture": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL picture": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a Netpbm picture (PPM)": rb"P[1-7]\s",
    "an OpenEXR picture": rb"v/1\x01",
    "a Radiance picture (HDR)": rb"#\?R",
    "a DirectDraw texture (DDS)": rb"DDS ",
    "a camera's raw file": rb"....ftypcrx |FUJIFILMCCD-RAW|IIRO|IIU\0",
    "a video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
    "a ZIP archive": rb"PK\x03\x04",
    "a gzip archive": rb"\x1f\x8b",
}
"""What files are that are taken for pictures, in words → how they begin."""


def format_of(head: bytes) -> str | None:
    """The format, by Pillow's name, of a file that begins with these bytes; None if it is none that is read."""
    return next((name for name, begins in SIGNATURES.items() if matches(begins, head)), None)


def other_kind(head: bytes) -> str | None:
    """What a file is that is not read, in words; None if its first bytes do not tell."""
    return next((words for words, begins in OTHERS.items() if matches(begins, head)), None)


def matches(begins: bytes, head: bytes) -> bool:
    return re.match(begins, head[:HEAD], re.DOTALL) is not None


def spelled(formats: tuple[str, ...]) -> str:
    """A list of formats in words: "PNG, JPEG or WebP"."""
    names = [NAMES.get(each, each) for each in formats]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


@cache
def load_plugin(name: str) -> bool:
    """Imports Pillow's module for one format; otherwise Pillow would import all 40. False if there is none."""
    try:
        if name == "HEIF":
            importlib.import_module("pillow_heif").register_heif_opener()
        else:
            importlib.import_module(f"PIL.{PLUGINS[name]}")
    except ImportError:
        return False
    return name in Image.OPEN
