"""The installed C++ library in a project outside the repository: nothing but where it is has to be said."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from .conftest import CppBuild

ROOT = Path(__file__).resolve().parents[3]


def test_the_example_takes_a_static_library(sanitized: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    """Its users link what it was built with: ONNX Runtime, libpng, libjpeg and whatever optional libraries it has."""
    assert sanitized.library.suffix == ".a"
    project = Path(shutil.copytree(ROOT / "examples" / "cpp", tmp_path / "project"))
    for words in (
        ["-S", project, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={sanitized.prefix}"],
        ["--build", tmp_path / "build"],
    ):
        done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    Image.effect_mandelbrot((176, 96), (-2, -1.5, 1, 1.5), 50).save(tmp_path / "in.png")
    editor = [tmp_path / "build" / "my-editor", tiny_bundle, tmp_path / "in.png", "make it blue"]
    done = subprocess.run([*map(str, editor), str(tmp_path / "out.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out.png").size == (176, 96)
