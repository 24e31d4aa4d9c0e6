"""Previews in C++ and C, beside Python's."""

from __future__ import annotations

import ctypes
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from kontext.runtime import OnnxRuntimeOptions, Pipeline
from kontext.runtime.cli import main

from ..drawings import left_half, smooth
from .c_structures import ERROR, OK, PROGRESS, CEditOptions, CEntry, CImage, CLoadOptions, c_image

if TYPE_CHECKING:
    from .conftest import CppBuild


def test_the_programs_write_the_same(
    cpp: CppBuild, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    smooth(176, 96).save("in.png")
    common = ["-i", "in.png", "-p", "x", "--steps", "3", "--device", "cpu", "--num-images", "2", "--quiet"]
    assert main([str(tiny_bundle), *common, "-o", "python.png", "--preview", "python-preview.png"]) == 0
    done = cpp.run(tiny_bundle, *common, "-o", "cpp.png", "--preview", "cpp-preview.png")
    assert done.returncode == 0, done.stderr
    with Image.open("cpp-preview.png") as ours, Image.open("python-preview.png") as theirs:
        assert ours.size == theirs.size == (176, 96)
        assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
        assert np.asarray(ours).std() > 5


def test_every_step_of_every_picture_in_c(c_api: ctypes.CDLL, tiny_bundle: Path) -> None:
    """Repainted, guided, and pictures of two sizes."""
    kept: list[Any] = []
    images = [smooth(176, 96), smooth(128, 128, 1), smooth(176, 96, 2)]
    pipeline, chosen = ctypes.c_void_p(), CLoadOptions(threads=1)
    assert c_api.kontext_load(str(tiny_bundle).encode(), ctypes.byref(chosen), ctypes.byref(pipeline)) == OK
    seen: list[list[np.ndarray]] = []

    def at_step(_user: object, _step: int, _steps: int, _latents: object, extents: Any) -> int:
        pictures = []
        for index in range(extents[0]):
            image = CImage()
            status = c_api.kontext_preview(pipeline, ctypes.c_size_t(index), 1, ctypes.byref(image))
            assert status == OK, c_api.kontext_error()
            assert (image.height, image.width) == (extents[2], extents[3])
            pixels = np.ctypeslib.as_array(image.rgb, (image.height, image.width, 3))
            pictures.append(pixels.astype(int))
            c_api.kontext_image_free(ctypes.byref(image))
        seen.append(pictures)
        image = CImage()
        assert c_api.kontext_preview(pipeline, ctypes.c_size_t(9), 1, ctypes.byref(image)) == ERROR
        assert c_api.kontext_error() == f"there is no picture 9 of {extents[0]}".encode()
        for enlarge in (0, 17, -1):
            assert c_api.kontext_preview(pipeline, 0, enlarge, ctypes.byref(image)) == ERROR
            assert b"a preview is enlarged by 1 to 16" in c_api.kontext_error()
        return 0

    mask, given = c_image(left_half(64, 64), kept), [c_image(each, kept) for each in images]
    entries = (CEntry * 3)(*(CEntry(b"make it blue", ctypes.pointer(each), 1) for each in given))
    options = CEditOptions(
        steps=4,
        mask=ctypes.pointer(mask),
        strength=0.7,
        negative_prompt=b"a star",
        true_cfg=3,
        cfg_until=0.5,
        progress=PROGRESS(at_step),
    )
    results = (CImage * 3)()
    assert c_api.kontext_edit_all(pipeline, entries, 3, 1, ctypes.byref(options), results) == OK
    for image in results:
        c_api.kontext_image_free(ctypes.byref(image))

    python = Pipeline.load(tiny_bundle, device="cpu", backend=OnnxRuntimeOptions(threads=1))
    expected: list[list[Image.Image]] = []
    python.edit(
        images,
        ["make it blue"] * 3,
        steps=4,
        mask=left_half(64, 64),
        strength=0.7,
        negative_prompt="a star",
        true_cfg=3,
        cfg_until=0.5,
        callback=lambda *_: expected.append(python.previews()),
    )
    assert [len(each) for each in seen] == [len(each) for each in expected]
    for ours, theirs in zip(seen, expected, strict=True):
        for pixels, picture in zip(ours, theirs, strict=True):
            assert np.abs(pixels - np.asarray(picture)).max() <= 1

    image = CImage()
    assert c_api.kontext_preview(pipeline, 0, 1, ctypes.byref(image)) == ERROR
    assert b"only while an edit runs" in c_api.kontext_error()
    c_api.kontext_free(pipeline)


def test_what_can_go_wrong_is_one_line(cpp: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    common = ["-p", "x", "-o", output, "--steps", "1", "--device", "cpu", "--preview"]
    assert "--preview and -o both name" in cpp.refuse(tiny_bundle, *common, output)
    assert "/no does not exist" in cpp.refuse(tiny_bundle, *common, tmp_path / "no" / "x.png")
    assert "x.xyz" in cpp.refuse(tiny_bundle, *common, tmp_path / "x.xyz")
    old = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["preview"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert "has no colours for previews" in cpp.refuse(old, *common, tmp_path / "x.png")
    assert not output.exists()
