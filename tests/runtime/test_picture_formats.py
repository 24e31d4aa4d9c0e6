"""Pictures are told by their first bytes, and nothing else reaches a decoder, whatever the file's name says."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image, features

from kontext.errors import KontextError
from kontext.runtime.images import open_picture, read_picture
from kontext.runtime.picture_formats import PLUGINS, format_of, load_plugin, other_kind, spelled


def encoded(file_format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize("file_format", sorted(set(PLUGINS) - {"HEIF", "AVIF"}))
def test_what_pillow_writes_is_known_and_read(tmp_path: Path, file_format: str) -> None:
    assert format_of(encoded(file_format)) == file_format
    (tmp_path / "x.png").write_bytes(encoded(file_format))
    assert open_picture(tmp_path / "x.png").format == file_format


def test_avif_is_read() -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    assert read_picture(io.BytesIO(encoded("AVIF")), "it").size == (16, 16)


BRANDS = {
    b"avif": "AVIF",
    b"avis\0\0\0\0msf1": "AVIF",
    b"mif1\0\0\0\0mif1avifmiaf": "AVIF",
    b"heic\0\0\0\0mif1heic": "HEIF",
    b"mif1\0\0\0\0mif1heic": "HEIF",
    b"isom\0\0\0\0mp41": None,
}


@pytest.mark.parametrize("brands", BRANDS)
def test_avif_and_heic_by_their_brands(brands: bytes) -> None:
    """ISO/IEC 14496-12, section 4.3: the major brand, a version, the compatible brands."""
    assert format_of(b"\0\0\0\x20ftyp" + brands) == BRANDS[brands]


def test_heic_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    load_plugin.cache_clear()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(
        KontextError, match=r"phone\.heic is a HEIC picture: pip install pillow-heif, or save it"
    ):
        open_picture(tmp_path / "phone.heic")
    load_plugin.cache_clear()


def test_heic_with_its_library() -> None:
    """Its files say that they have no EXIF data by None."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    data = encoded("HEIF")
    assert format_of(data) == "HEIF"
    assert read_picture(io.BytesIO(data), "it").size == (16, 16)


FOREIGN = {
    "a PostScript file (EPS)": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "a PDF file": b"%PDF-1.7\n",
    "an SVG drawing": b'<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a web page": b"\n<!DOCTYPE html><html>",
    "a JPEG XL picture": b"\xff\x0a\0\0",
    "a video": b"\0\0\0\x18ftypmp42\0\0\0\0",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.png").write_bytes(FOREIGN[kind])
    with pytest.raises(KontextError) as caught:
        open_picture(tmp_path / "x.png")
    accepted = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
    assert str(caught.value) == f"{tmp_path / 'x.png'} is {kind}, not a {accepted} picture"


OTHERS = {
    "EPS": "PostScript",
    "PDF": "PDF",
    "ICO": "icon",
    "PPM": "Netpbm",
    "JPEG2000": "JPEG 2000",
    "TGA": "",
}


@pytest.mark.parametrize("file_format", OTHERS)
def test_formats_that_pillow_could_read_are_refused(file_format: str) -> None:
    data = encoded(file_format)
    assert OTHERS[file_format] in (other_kind(data) or "")
    with pytest.raises(KontextError, match=r"^it is .*not a PNG, JPEG, WebP, .* picture$"):
        read_picture(io.BytesIO(data), "it")


def test_fewer_formats() -> None:
    with pytest.raises(KontextError, match="it is a BMP picture, not a PNG, JPEG or WebP picture"):
        read_picture(io.BytesIO(encoded("BMP")), "it", formats=("PNG", "JPEG", "WEBP"))


def test_formats_in_words() -> None:
    assert spelled(("PNG",)) == "PNG"
    assert spelled(("PNG", "WEBP")) == "PNG or WebP"
