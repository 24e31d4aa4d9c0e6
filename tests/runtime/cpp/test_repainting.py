"""Masks, strength and negative prompts in C++ and C, beside Python's."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from kontext.runtime import OnnxRuntimeOptions, Pipeline
from kontext.runtime.cli import main
from kontext.runtime.masks import blurred, to_grey

from ..drawings import left_half, smooth
from .c_structures import ERROR, OK, WARNING, CEditOptions, CEntry, CImage, CLoadOptions, c_image

if TYPE_CHECKING:
    from .conftest import CppBuild


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, len(mode)), np.uint8)
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


MASKS = {
    "grey": noise(60, 40, "L"),
    "colours": noise(31, 77),
    "alpha": noise(50, 50, "RGBA"),
    "opaque": noise(50, 49).convert("RGBA"),
    "grey and alpha": noise(33, 20, "RGBA").convert("LA"),
    "bits": noise(40, 40, "L").convert("1"),
    "palette": noise(20, 90).convert("P"),
    "16 bits": Image.fromarray(np.asarray(noise(30, 31, "L")).astype(np.uint16) * 250),
    "a line": noise(300, 2, "L"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_read_and_blurred_as_pillow_does_it(cpp: CppBuild, tmp_path: Path, name: str) -> None:
    MASKS[name].save(path := tmp_path / "mask.png")
    for blur in (0, 1, 3, 17, 1000):
        header, _, data = cpp.ask("mask", path, blur).partition(b"\n")
        assert tuple(map(int, header.split())) == MASKS[name].size
        with warnings.catch_warnings(), Image.open(path) as mask:
            warnings.simplefilter("ignore")
            expected = blurred(to_grey(mask), blur).convert("RGB")
        assert data == expected.tobytes(), blur


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["-i", "in.png", "--mask", "mask.png", "--strength", "0.6"], ""),
        (
            [
                "-i",
                "other.png",
                "--init-image",
                "in.png",
                "--mask",
                "alpha.png",
                "--mask-blur",
                "5",
                "--paste-back",
            ],
            "the mask is taken from its transparency",
        ),
        (["-i", "in.png", "-i", "other.png", "--strength", "0.3"], ""),
        (
            ["-i", "in.png", "--mask", "mask.png", "--size", "64x64"],
            "another aspect than the output of 64x64",
        ),
        (["-i", "in.png", "--mask", "tall.png"], "the mask of 50x90 has another aspect than the picture"),
        (["-i", "in.png", "--mask", "black.png"], "the mask is black"),
        (["-i", "in.png", "--mask", "dot.png"], "white parts are too small"),
        (["--negative-prompt", "a star", "--true-cfg", "4", "--cfg-until", "0.5"], ""),
        (["-i", "in.png", "--mask", "mask.png", "--negative-prompt", "", "--true-cfg", "1.5"], ""),
        (["--true-cfg", "4"], "true_cfg 4 has no effect without a negative_prompt"),
        (["--negative-prompt", "x", "--cfg-until", "0.5"], "negative_prompt has no effect"),
    ],
)
def test_pictures_and_warnings_are_pythons(
    cpp: CppBuild,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    warned: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    smooth(176, 96).save("in.png")
    smooth(128, 128, 1).save("other.png")
    left_half(88, 48).save("mask.png")
    left_half(50, 90).save("tall.png")
    Image.new("L", (176, 96)).save("black.png")
    (dot := Image.new("L", (176, 96))).paste(255, (10, 10, 14, 14))
    dot.save("dot.png")
    (alpha := noise(88, 48)).putalpha(left_half(88, 48))
    alpha.save("alpha.png")
    common = ["--prompt", "make it blue", "--steps", "5", "--seed", "3", "--device", "cpu", *words]
    done = cpp.run(tiny_bundle, *common, "-o", "cpp.png")
    assert done.returncode == 0, done.stderr
    assert main([str(tiny_bundle), *common, "-o", "python.png"]) == 0
    assert done.stderr == capsys.readouterr().err
    assert (warned in done.stderr) if warned else done.stderr == ""
    with Image.open("cpp.png") as ours, Image.open("python.png") as theirs:
        assert ours.size == theirs.size
        assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
        if "--paste-back" in words:  # exactly the picture's, far from the blurred mask
            assert np.array_equal(np.asarray(ours)[:, 130:], np.asarray(smooth(176, 96))[:, 130:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask", "no.png"], "no.png does not exist"),
        (["--mask", __file__], "is not a PNG, JPEG or WebP picture"),
        (["--mask", "mask.png"], "a mask needs a picture to repaint: give image, or init_image"),
        (["--strength", "0.5"], "a strength below 1 needs a picture to repaint"),
        (["--strength", "0"], "strength must be above 0 and at most 1, not 0"),
        (["--strength", "nan"], "strength must be above 0 and at most 1, not nan"),
        (["--strength", "half"], "--strength: invalid float value: 'half'"),
        (["--strength", "1e-20"], "strength 1e-20 leaves none of 1 steps"),
        (["--mask-blur", "2"], "mask_blur needs a mask"),
        (
            ["--mask", "mask.png", "--mask-blur", "1001"],
            "mask_blur must be a whole number of pixels from 0 to 1000",
        ),
        (["--paste-back"], "paste_back needs a mask"),
        (["--init-image", "mask.png"], "init_image needs a mask, or a strength below 1"),
        (["--true-cfg", "0.5"], "true_cfg must be a number from 1 to 1000, not 0.5"),
        (["--true-cfg", "inf"], "true_cfg must be a number from 1 to 1000, not inf"),
        (["--cfg-until", "1.5"], "cfg_until must be above 0 and at most 1, not 1.5"),
    ],
)
def test_what_can_go_wrong_is_one_line(
    cpp: CppBuild,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    left_half(88, 48).save("mask.png")
    common = ["--prompt", "x", "--steps", "1", "--device", "cpu", "-o", "out.png"]
    assert message in cpp.refuse(tiny_bundle, *common, *words)
    assert not Path("out.png").exists()


def test_a_batch_in_c_is_pythons(c_api: ctypes.CDLL, tiny_bundle: Path, tmp_path: Path) -> None:
    """Rows of two sizes with one mask, and everything that repaints and guides."""
    kept: list[Any] = []
    images = [smooth(176, 96), smooth(128, 128, 1), smooth(176, 96, 2)]
    prompts = ["make it blue", "a red circle", "add a star"]
    (alpha := noise(64, 64)).putalpha(left_half(64, 64))
    alpha.save(tmp_path / "mask.png")
    said: list[bytes] = []
    warning = WARNING(lambda _user, text: said.append(text))
    mask, pipeline, chosen = CImage(), ctypes.c_void_p(), CLoadOptions(threads=1)
    path = str(tmp_path / "mask.png").encode()
    assert c_api.kontext_mask_read(path, warning, None, ctypes.byref(mask)) == OK
    assert [text[:39] for text in said] == [b"the mask is taken from its transparency"]
    status = c_api.kontext_load(str(tiny_bundle).encode(), ctypes.byref(chosen), ctypes.byref(pipeline))
    assert status == OK, c_api.kontext_error()
    given = [c_image(each, kept) for each in images]
    entries = (CEntry * 3)(
        *(CEntry(text.encode(), ctypes.pointer(each), 1) for text, each in zip(prompts, given, strict=True))
    )
    options = CEditOptions(
        steps=5,
        seed=4,
        mask=ctypes.pointer(mask),
        mask_blur=3,
        strength=0.7,
        paste_back=1,
        negative_prompt=b"a star",
        true_cfg=3,
        cfg_until=0.5,
    )
    results = (CImage * 6)()
    assert c_api.kontext_edit_all(pipeline, entries, 3, 2, ctypes.byref(options), results) == OK
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Pipeline.load(tiny_bundle, device="cpu", backend=OnnxRuntimeOptions(threads=1)).edit(
            images,
            prompts,
            steps=5,
            seed=4,
            num_images=2,
            mask=left_half(64, 64),
            mask_blur=3,
            strength=0.7,
            paste_back=True,
            negative_prompt="a star",
            true_cfg=3,
            cfg_until=0.5,
        )
    for image, picture in zip(results, expected, strict=True):
        assert (image.width, image.height) == picture.size
        pixels = np.ctypeslib.as_array(image.rgb, (image.height, image.width, 3)).astype(int)
        assert np.abs(pixels - np.asarray(picture)).max() <= 1
        c_api.kontext_image_free(ctypes.byref(image))
    options.cfg_until = -1
    assert c_api.kontext_edit_all(pipeline, entries, 3, 2, ctypes.byref(options), results) == ERROR
    assert b"cfg_until must be above 0 and at most 1, not -1" in c_api.kontext_error()
    c_api.kontext_image_free(ctypes.byref(mask))
    c_api.kontext_free(pipeline)
