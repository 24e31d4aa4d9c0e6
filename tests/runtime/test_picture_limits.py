"""Files that ask for far more than their pixels: refused before anything is decoded."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.decibels import psnr
from kontext.errors import KontextError
from kontext.runtime import images, picture_limits
from kontext.runtime.images import open_picture, read_picture
from kontext.runtime.picture_limits import jpeg_scans

from .test_images import gradient


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def with_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG file with its last scan `count` times more."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def test_scans_are_counted() -> None:
    """libjpeg's default script for colour has 10 scans (jcparam.c)."""
    assert jpeg_scans(jpeg(gradient(64, 48)))[0] == 1
    data = jpeg(gradient(64, 48), progressive=True)
    assert jpeg_scans(data)[0] == 10
    assert jpeg_scans(with_scans(data, 7))[0] == 17


def test_only_the_first_picture_is_counted() -> None:
    """Thumbnails in EXIF data, and further pictures behind the first as in MPO files, have scans of their own."""
    data = jpeg(gradient(64, 48))
    exif = b"Exif\0\0" + data * 5
    behind = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:] + data * 9
    assert jpeg_scans(behind)[0] == 1


@pytest.mark.parametrize(("count", "good"), [(54, True), (55, False), (200, False)])
def test_a_jpeg_of_many_scans(count: int, good: bool) -> None:
    data = with_scans(jpeg(gradient(64, 48), progressive=True), count)
    if good:
        assert read_picture(io.BytesIO(data), "it").size == (64, 48)
        return
    with pytest.raises(KontextError, match=f"it is a JPEG file of {10 + count} scans; at most 64 are read"):
        read_picture(io.BytesIO(data), "it")


@pytest.mark.parametrize("cut", [3, 20, 300, -1])
def test_what_is_no_whole_jpeg_has_scans_too(cut: int) -> None:
    data = jpeg(gradient(64, 48))[:cut]
    assert jpeg_scans(data)[0] in (0, 1)


@pytest.mark.parametrize("size", [(32_769, 1), (1, 32_769)])
def test_a_side_that_is_too_long(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "line.png")
    with pytest.raises(KontextError, match=r"sides of at most 32768 pixels are read"):
        open_picture(tmp_path / "line.png")


def tiff(entries: list[tuple[int, int, int, int]], more: bytes = b"") -> bytes:
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + more


def test_tags_that_share_their_bytes(tmp_path: Path) -> None:
    """1000 tags of the same 2 MB would be 2 GB."""
    data = tiff([(1000 + i, 7, 2 << 20, 0) for i in range(1000)], bytes(2 << 20))
    with pytest.raises(KontextError, match="it cannot be read as a picture: its tags are damaged"):
        read_picture(io.BytesIO(data), "it")


def test_more_tags_than_any_file_has() -> None:
    data = tiff([(i, 3, 1, 0) for i in range(2000)])
    with pytest.raises(KontextError, match="its tags are damaged"):
        read_picture(io.BytesIO(data), "it")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tile_larger_than_pictures_may_be(order: str) -> None:
    entries = [(256, 4, 1, 64), (257, 4, 1, 64), (322, 4, 1, 1 << 16), (323, 4, 1, 1 << 16)]
    packed = b"".join(struct.pack(f"{order}HHII", *each) for each in entries)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    data = magic + struct.pack(f"{order}IH", 8, len(entries)) + packed + bytes(4)
    with pytest.raises(KontextError, match="its tags are damaged"):
        read_picture(io.BytesIO(data), "it")


def test_exif_data_that_multiply_themselves() -> None:
    """In a JPEG file Pillow joins EXIF segments: with 65535 entries of the whole they would be 80 GB."""
    body = tiff([(i, 7, 60_000, 0) for i in range(2000)], bytes(30_000))
    exif = b"Exif\0\0" + body
    data = jpeg(gradient(64, 48))
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:]
    with pytest.raises(KontextError, match="its tags are damaged"):
        read_picture(io.BytesIO(data), "it")


def test_what_is_not_a_regular_file(tmp_path: Path) -> None:
    """A FIFO without a writer would be waited for for ever."""
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(KontextError, match=r"fifo\.png is not a regular file"):
        open_picture(tmp_path / "fifo.png")
    with pytest.raises(KontextError, match="not a regular file"):
        open_picture("/dev/zero")


def test_a_file_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(KontextError, match="it has more than"):
        read_picture(io.BytesIO(jpeg(gradient(64, 48))), "it")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_a_damaged_tiff_prints_nothing(tmp_path: Path, compression: str) -> None:
    """libtiff would write lines of its own on stderr, and Python what Pillow logs of 300 samples per pixel."""
    path = tmp_path / "bad.tif"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(path, compression=compression)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
    path.write_bytes(data)
    odd = tmp_path / "odd.tif"
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (277, 3, 1, 300), (273, 4, 1, 8)]
    odd.write_bytes(tiff(entries))
    code = (
        "import sys; from kontext.runtime.images import open_picture; from kontext.errors import KontextError\n"
        "try: open_picture(sys.argv[1])\nexcept KontextError: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("width", "height", "least"), [(1280, 960, 45), (1283, 961, 33)])
def test_large_jpegs_are_reduced_while_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, least: float
) -> None:
    """As decoded at full size and resized after. Sides that are no multiples of 2 end in half a pixel, which shifts
    this small picture's edge by a tenth of a pixel, and one of 24 million pixels by less than a fiftieth."""
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 81, 3), np.uint8))
    large = rough.resize((width, height), Image.Resampling.BICUBIC)
    data = jpeg(large, quality=95)
    full = read_picture(io.BytesIO(data), "it")
    assert full.size == large.size
    monkeypatch.setattr(images, "REDUCE_ABOVE", 700 * 500)
    assert np.array_equal(read_picture(io.BytesIO(data), "it", reduce=False), full)
    reduced = read_picture(io.BytesIO(data), "it")
    assert reduced.size == ((width + 1) // 2, (height + 1) // 2)
    small = [each.resize((160, 120), Image.Resampling.LANCZOS) for each in (full, reduced)]
    assert psnr(small[0], small[1]) > least


def test_directories_of_any_bytes() -> None:
    """Neither an exception nor more entries than there is room for."""
    rng = np.random.default_rng(1)
    for _ in range(2000):
        data = bytearray(rng.bytes(int(rng.integers(0, 80))))
        data[:4] = [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"][rng.integers(4)]
        assert len(picture_limits.directory(bytes(data))) * 12 <= len(data)
