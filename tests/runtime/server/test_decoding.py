"""Pictures decoded in other processes: what a file does to one of them costs that file's request only."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.errors import ComputationError, KontextError
from kontext.runtime.images import read_picture
from kontext.runtime.masks import to_grey
from kontext.runtime.rgb import upright_rgb
from kontext.runtime.server import decoding, decoding_process
from kontext.runtime.server.decoding import Decoders

FORMATS = ("PNG", "JPEG", "WEBP")


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), mode)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    pool = Decoders(processes=1, seconds=5)
    yield pool
    pool.close()


def decode(pool: Decoders, file: bytes, *, max_pixels: int = 10**6, reduce: bool = True) -> decoding.Decoded:
    return pool.decode(file, "IMAGES[0]", FORMATS, max_pixels, reduce)


@pytest.mark.parametrize(("file_format", "mode"), [("PNG", "RGB"), ("JPEG", "RGB"), ("WEBP", "RGBA")])
def test_pictures_are_those_of_this_process(decoders: Decoders, file_format: str, mode: str) -> None:
    file = encoded(noise(50, 37, mode), file_format)
    found = decode(decoders, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = upright_rgb(read_picture(io.BytesIO(file), "it"))
    assert np.array_equal(found.picture, expected)
    assert found.warnings == (("transparent parts of the picture become white",) if mode == "RGBA" else ())


def test_masks_are_grey(decoders: Decoders) -> None:
    mask = noise(50, 37, "RGBA")
    with pytest.warns(UserWarning, match="the mask is taken from its transparency"):
        expected = to_grey(mask)
    found = decoders.decode(encoded(mask), "MASK", FORMATS, 10**6, False, mask=True)
    assert found.picture.mode == "L"
    assert np.array_equal(found.picture, expected)
    assert [text[:36] for text in found.warnings] == ["the mask is taken from its transparen"[:36]]


def test_errors_are_those_of_this_process(decoders: Decoders) -> None:
    process = decoders.free.queue[0]
    for file, message in (
        (encoded(noise(200, 200))[:300], r"IMAGES\[0\] cannot be read as a picture"),
        (encoded(noise(8, 8), "BMP"), "is a BMP picture, not a PNG, JPEG or WebP picture"),
        (encoded(noise(2000, 1000)), "has more than 1 million pixels"),
        (b"", "not a PNG, JPEG or WebP picture"),
    ):
        with pytest.raises(KontextError, match=message) as caught:
            decode(decoders, file)
        assert not isinstance(caught.value, ComputationError)
    assert decoders.free.queue[0] is process  # none of these killed it


def test_a_picture_that_takes_too_long(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a JPEG file's 64 scans of 25 million pixels take longer than a tenth of a second."""
    data = encoded(Image.new("RGB", (5000, 5000), "red"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    data = data[:-2] + data[last:-2] * 50 + data[-2:]
    monkeypatch.setattr(decoders, "seconds", 0.1)
    with pytest.raises(KontextError, match=r"IMAGES\[0\] takes more than 0\.1 s to decode"):
        decode(decoders, data, max_pixels=10**8)
    monkeypatch.undo()
    assert decode(decoders, encoded(noise(8, 8))).picture.size == (8, 8)  # another process


def test_a_process_that_is_killed_between_pictures(decoders: Decoders) -> None:
    process = decoders.free.queue[0]
    assert process is not None
    os.kill(process.process.pid, signal.SIGKILL)
    process.process.wait()
    assert decode(decoders, encoded(noise(8, 8))).picture.size == (8, 8)


def test_a_process_that_crashes(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, sys; sys.stdin.buffer.read(1); os.abort()"
    monkeypatch.setattr(decoding, "CODE", crash)
    broken = Decoders(processes=1)
    monkeypatch.undo()
    with pytest.raises(KontextError, match=r"IMAGES\[0\] cannot be read as a picture: its decoder died"):
        decode(broken, encoded(noise(8, 8)))
    assert decode(broken, encoded(noise(8, 8))).picture.size == (8, 8)
    broken.close()


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "interpreter", lambda: "/nowhere/python")
    with pytest.raises(ComputationError, match="no process can be started to decode pictures"):
        Decoders(processes=1)


def test_the_memory_of_a_process_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half a gigabyte of address space, 81 million pixels are one line, and the process lives on."""
    code = "import kontext.runtime.server.decoding_process as p; p.MEMORY_BYTES = 1 << 29; p.main()"
    monkeypatch.setattr(decoding, "CODE", f"sys.path[:] = sys.argv[1:]; {code}")
    pool = Decoders(processes=1)
    process = pool.free.queue[0]
    with pytest.raises(KontextError, match="memory"):
        decode(pool, encoded(Image.new("1", (9000, 9000))), max_pixels=10**8)
    assert decode(pool, encoded(noise(8, 8))).picture.size == (8, 8)
    assert pool.free.queue[0] is process
    pool.close()


def test_no_code_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('pwned')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    pool = Decoders(processes=1)
    assert decode(pool, encoded(noise(8, 8))).picture.size == (8, 8)
    pool.close()


def test_the_time_limit_is_no_limit_between_pictures(decoders: Decoders) -> None:
    decode(decoders, encoded(noise(8, 8)))
    process = decoders.free.queue[0]
    time.sleep(0.05)
    assert process is not None
    assert process.works()


def test_an_embedded_python_finds_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", None, "/opt/server/backend_stub"):
        monkeypatch.setattr(sys, "executable", name)
        assert os.path.basename(decoding.interpreter()).startswith("python3")


def test_answers_to_many_requests_in_one_stream() -> None:
    """The process's loop, in this process."""
    request = {"name": "it", "formats": FORMATS, "max_pixels": 100, "reduce": True, "mask": False}
    good, bad = encoded(noise(5, 4)), encoded(noise(50, 40))
    assert decoding_process.decode(good, request) == (
        {"size": (5, 4), "mode": "RGB", "warnings": []},
        noise(5, 4).tobytes(),
    )
    assert "million pixels" in decoding_process.decode(bad, request)[0]["error"]
