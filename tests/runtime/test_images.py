"""Pictures in and out: every mode that users have, sizes, damaged files, and writes that are whole or absent."""

from __future__ import annotations

import errno
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext import files
from kontext.errors import KontextError
from kontext.runtime import images
from kontext.runtime.rgb import upright_rgb

from ..torture.mutated_pictures import mutated


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((x, y, 255 - x), axis=-1).astype(np.uint8))


def test_preferred_size_is_that_of_diffusers() -> None:
    module = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux_kontext")
    sizes = module.PREFERRED_KONTEXT_RESOLUTIONS
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 3000, (500, 2)).tolist():
        aspect = width / height
        _, *expected = min((abs(aspect - w / h), w, h) for w, h in sizes)
        assert images.preferred_size((width, height), sizes) == tuple(expected)


@pytest.mark.parametrize("size", [(64, 48), (96, 160)])
def test_array_is_that_of_diffusers(size: tuple[int, int]) -> None:
    processors = pytest.importorskip("diffusers.image_processor")
    processor = processors.VaeImageProcessor(vae_scale_factor=16)
    image = gradient(100, 75)
    resized = processor.resize(image, size[1], size[0])
    expected = processor.preprocess(resized, size[1], size[0]).numpy()
    assert np.array_equal(images.to_array(image, size), expected)


def test_pictures_are_those_of_diffusers() -> None:
    processors = pytest.importorskip("diffusers.image_processor")
    torch = pytest.importorskip("torch")
    array = np.random.default_rng(0).normal(0, 0.7, (2, 3, 32, 48)).astype(np.float32)
    expected = processors.VaeImageProcessor().postprocess(torch.from_numpy(array), output_type="pil")
    for ours, theirs in zip(images.to_pictures(array), expected, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="does not exist"):
        images.open_picture(tmp_path / "nowhere.png")
    with pytest.raises(KontextError, match="cannot be read as a picture: Is a directory"):
        images.open_picture(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"\0" * 64]
)
def test_a_file_that_is_not_a_picture(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(KontextError, match=r"x\.png .*picture"):
        images.open_picture(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff"])
def test_a_truncated_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    gradient(200, 200).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(KontextError, match=r"cut.* picture") as caught:
        images.open_picture(path)
    assert not str(caught.value).endswith("None")  # the decoder's reason is in it


@pytest.mark.parametrize("side", [10_001, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(KontextError, match="more than 100 million pixels"):
        images.open_picture(tmp_path / "bomb.png")


def tiff_of_floats() -> bytes:
    """A TIFF file of one pixel of three floats, which Pillow cannot read (TIFF 6.0)."""
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 134), (277, 3, 1, 3), (279, 4, 1, 12), (339, 3, 3, 128)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    values = struct.pack("<3H3H", 32, 32, 32, 3, 3, 3) + struct.pack("<3f", 0.1, 0.5, 0.9)
    return b"II*\0" + struct.pack("<I", 8) + directory + values


def test_a_tiff_of_floats_is_named(tmp_path: Path) -> None:
    (tmp_path / "float.tif").write_bytes(tiff_of_floats())
    with pytest.raises(KontextError, match="its pixels are 3 floats of 32 bits; save it as PNG first"):
        images.open_picture(tmp_path / "float.tif")


def test_a_limit_is_the_largest_that_is_read() -> None:
    file = io.BytesIO()
    gradient(10, 5).save(file, "PNG")
    file.seek(0)
    assert images.read_picture(file, "it", max_pixels=50).size == (10, 5)
    file.seek(0)
    with pytest.raises(KontextError, match=r"it has more than 4\.9e-05 million pixels"):
        images.read_picture(file, "it", max_pixels=49)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".bmp"])
def test_saves_in_the_format_of_the_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("an older picture")
    images.save_picture(gradient(32, 16), path)
    with Image.open(path) as image:
        assert image.size == (32, 16)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_formats_that_pillow_loads_late_are_known_too() -> None:
    """In a process that has used no picture yet, only PNG, JPEG and few more are registered."""
    code = "from pathlib import Path; from kontext.runtime import images; print(images.check_format(Path('x.webp')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "WEBP\n", done.stderr


@pytest.mark.parametrize("name", ["out", "out.txt", "out.gguf", "out.mp4"])
def test_suffixes_that_are_no_picture(tmp_path: Path, name: str) -> None:
    with pytest.raises(KontextError, match="cannot write pictures of type"):
        images.check_writable(tmp_path / name)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="make the folder first"):
        images.check_writable(tmp_path / "nowhere" / "out.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(KontextError, match="is a folder"):
        images.check_writable(tmp_path / "folder.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(KontextError, match="cannot be written"):
        images.check_writable(tmp_path / "file" / "out.png")


def test_a_full_disk_leaves_the_older_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "out.png"
    images.save_picture(gradient(16, 16), path)
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(KontextError, match="No space left on device"):
        images.save_picture(gradient(32, 32), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("first", range(0, 300, 100))
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_read_or_refused(first: int) -> None:
    """The short form of tests/torture/test_pictures.py: no exception but KontextError."""
    for seed in range(first, first + 100):
        message = ""
        try:
            picture = upright_rgb(images.read_picture(io.BytesIO(mutated(seed)[1]), "it"))
        except KontextError as error:
            message = str(error)
        assert "\n" not in message
        assert message or picture.mode == "RGB"
