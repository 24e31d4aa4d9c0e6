"""Metadata in files: found by Pillow where other programs look, and taken back from every format that holds them."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import ExifTags, Image, features

from kontext.errors import KontextError
from kontext.runtime.images import open_picture, save_picture
from kontext.runtime.metadata import KEY, infotext, metadata_json
from kontext.runtime.picture_metadata import metadata_text, save_options

from .given_metadata import GIVEN

AVIF = pytest.param(
    ".avif", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
)


def made(prompt: str = "mäke it blue, 漢") -> Image.Image:
    picture = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    picture.info[KEY] = GIVEN | {"prompt": prompt}
    return picture


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", AVIF])
def test_formats_that_hold_metadata(tmp_path: Path, suffix: str) -> None:
    path, picture = tmp_path / f"out{suffix}", made()
    save_picture(picture, path)
    found = open_picture(path)
    assert json.loads(metadata_text(found) or "") == picture.info[KEY]
    with Image.open(path) as image:
        if suffix == ".png":
            image.load()
            assert json.loads(image.text["kontext"]) == picture.info[KEY]
            assert image.text["parameters"] == infotext(picture.info[KEY])
        else:
            exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
            assert exif[ExifTags.Base.MakerNote] == b"kontext\0" + metadata_json(picture.info[KEY]).encode()
            code, comment = exif[ExifTags.Base.UserComment][:8], exif[ExifTags.Base.UserComment][8:]
            assert (code, comment.decode("utf-16-be")) == (b"UNICODE\0", infotext(picture.info[KEY]))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_files_without_metadata(tmp_path: Path, suffix: str) -> None:
    save_picture(made(), tmp_path / f"out{suffix}", metadata=suffix in (".bmp", ".tiff"))
    picture = open_picture(tmp_path / f"out{suffix}")
    assert metadata_text(picture) is None
    assert b"blue" not in (tmp_path / f"out{suffix}").read_bytes()


def test_a_prompt_that_does_not_fit_into_a_jpeg_file(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="do not fit into a JPEG file: it has none"):
        save_picture(made("x" * 65536), tmp_path / "out.jpg")
    assert metadata_text(open_picture(tmp_path / "out.jpg")) is None
    save_picture(made("x" * 65536), tmp_path / "out.png")
    assert metadata_text(open_picture(tmp_path / "out.png")) is not None


def test_a_prompt_that_is_not_unicode(tmp_path: Path) -> None:
    save_picture(made("caf\udce9"), tmp_path / "out.png")
    assert open_picture(tmp_path / "out.png").info["parameters"].startswith("caf?\n")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_text_that_is_a_bomb_is_one_line(tmp_path: Path) -> None:
    file = io.BytesIO()
    made().save(file, "PNG")
    bomb = chunk(b"zTXt", b"kontext\0\0" + zlib.compress(bytes(50_000_000)))
    data = file.getvalue()
    (tmp_path / "out.png").write_bytes(data[:33] + bomb + data[33:])
    with pytest.raises(KontextError, match=r"out\.png cannot be read as a picture: .*too large"):
        open_picture(tmp_path / "out.png")


@pytest.mark.parametrize("order", ["<", ">"])
def test_entries_that_share_their_bytes_cost_nothing(order: str) -> None:
    """Of a directory that Pillow would read whole, 60,000 times 20 MB."""
    data = bytearray(20_000_000)
    data[:8] = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    data[8:26] = struct.pack(f"{order}HHHIII", 1, ExifTags.IFD.Exif, 4, 1, 26, 0)
    struct.pack_into(f"{order}H", data, 26, 60_000)
    for number in range(60_000):
        struct.pack_into(f"{order}HHII", data, 28 + 12 * number, number, 7, 19_000_000, 1_000_000)
    picture = Image.new("RGB", (8, 8))
    picture.info["exif"] = b"Exif\0\0" + bytes(data)
    tracemalloc.start()
    assert metadata_text(picture) is None
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"\0" * 40]
)
def test_damaged_exif_data_hold_nothing(exif: bytes) -> None:
    picture = Image.new("RGB", (8, 8))
    picture.info["exif"] = exif
    assert metadata_text(picture) is None


def test_pictures_that_were_not_edited_are_saved_as_they_are() -> None:
    assert save_options(Image.new("RGB", (8, 8)), "PNG") == {}
    picture = Image.new("RGB", (8, 8))
    picture.info[KEY] = "a stranger's text"
    assert save_options(picture, "PNG") == {}
