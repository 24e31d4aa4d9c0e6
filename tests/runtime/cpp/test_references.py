"""References in C++: places, canvases, sizes and warnings are those of Python, whose places are ComfyUI's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from kontext.runtime.cli import main
from kontext.runtime.images import open_picture
from kontext.runtime.references import places_of, stitch

if TYPE_CHECKING:
    from .conftest import CppBuild


def save_drawing(path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("method", ["index", "offset", "stitch"])
def test_places_of_references(cpp: CppBuild, method: str) -> None:
    for sizes in ([(1024, 1024)] * 4, [(1392, 752), (752, 1392), (16, 32)] * 2, [(96, 128), (64, 64)]):
        lines = cpp.ask("places", method, *(side for size in sizes for side in size)).decode().splitlines()
        assert [tuple(map(int, line.split())) for line in lines] == places_of(method, sizes)


def test_stitched_references_pixel_by_pixel(cpp: CppBuild, tmp_path: Path) -> None:
    for number, sizes in enumerate(([(60, 40), (50, 90), (33, 40)], [(7, 31), (400, 9), (1, 900)])):
        paths = [tmp_path / f"{number}-{index}.png" for index in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            save_drawing(path, size)
        expected = stitch([open_picture(path) for path in paths])
        header, _, data = cpp.ask("canvas", *paths).partition(b"\n")
        assert tuple(map(int, header.split())) == expected.size
        assert data == expected.tobytes()


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "128x64"],
        ["--size", "96x160", "--reference-size", "auto"],
        ["--size", "160x160"],
        ["--reference-size", "64x64"],
        ["--reference-size", "output", "--size", "16x80"],
        ["--reference-method", "stitch", "--size", "64x64"],
    ],
)
def test_warnings_about_references_and_pictures_are_pythons(
    cpp: CppBuild, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    for index, size in enumerate([(300, 30), (70, 100)]):
        save_drawing(tmp_path / f"{index}.png", size)
    pictures, warned = [], []
    for name in ("cpp", "python"):
        output = tmp_path / f"{name}.png"
        images = ["-i", str(tmp_path / "0.png"), "-i", str(tmp_path / "1.png")]
        more = [*images, "--prompt", "x", "--steps", "1", "--device", "cpu", "-o", str(output), *words]
        if name == "cpp":
            done = cpp.run(tiny_bundle, *more)
            assert done.returncode == 0, done.stderr
            warned.append(done.stderr)
        else:
            assert main([str(tiny_bundle), *more]) == 0
            warned.append(capsys.readouterr().err)
        with Image.open(output) as image:
            pictures.append(np.asarray(image, np.int16))
    assert warned[0] == warned[1]
    assert ": it is squashed to" in warned[0] or words[-1] == "16x80"
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
