"""`kontext-edit --like`: the same picture again, other flags on top, and what is not as it was is named."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kontext.runtime import cli, images
from kontext.runtime.like import read_like
from kontext.runtime.metadata import LoadedLora

from .given_metadata import GIVEN

Edit = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, size in (("in.png", (176, 96)), ("second.png", (96, 128))):
        Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 50).convert("RGB").save(name)
    Image.linear_gradient("L").save("mask.png")
    return tmp_path


@pytest.fixture
def edit(tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Edit:
    """Runs the command; returns its exit code and what it says on stderr."""

    def run(*words: str, bundle: Path = tiny_bundle) -> str:
        code = cli.main([str(bundle), "--quiet", *words])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert code == (2 if captured.err.startswith("error: ") else 0)
        return captured.err

    return run


def pixels(path: str) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def forged(**changed: Any) -> None:
    """Writes strange.png, whose metadata somebody made up."""
    chunks = PngInfo()
    chunks.add_text("kontext", json.dumps(GIVEN | changed))
    Image.new("RGB", (8, 8)).save("strange.png", pnginfo=chunks)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_same_picture_again(edit: Edit, suffix: str) -> None:
    flags = ["-i", "in.png", "-i", "second.png", "--mask", "mask.png", "--init-image", "second.png"]
    asked = [
        "-p",
        "m\u00e4ke it blue",
        "--steps",
        "3",
        "--seed",
        "random",
        "--strength",
        "0.7",
        "--mask-blur",
        "2",
        "--paste-back",
    ]
    more = [
        "--negative-prompt",
        "grey",
        "--true-cfg",
        "2",
        "--reference-method",
        "offset",
        "--reference-size",
        "64x96",
    ]
    said = edit(*flags, *asked, *more, "--size", "96x128", "--device", "cpu", "-o", f"out.{suffix}")
    assert said == edit("--like", f"out.{suffix}", *flags, "-o", f"again.{suffix}")
    assert Path(f"out.{suffix}").read_bytes() == Path(f"again.{suffix}").read_bytes()


def test_other_flags_win(edit: Edit) -> None:
    edit(
        "-i",
        "in.png",
        "-p",
        "make it blue",
        "--steps",
        "2",
        "--seed",
        "5",
        "-o",
        "out.png",
        "--device",
        "cpu",
    )
    assert not edit("--like", "out.png", "-i", "in.png", "--seed", "6", "-o", "like.png")
    edit(
        "-i",
        "in.png",
        "-p",
        "make it blue",
        "--steps",
        "2",
        "--seed",
        "6",
        "-o",
        "plain.png",
        "--device",
        "cpu",
    )
    assert np.array_equal(pixels("like.png"), pixels("plain.png"))
    assert not np.array_equal(pixels("like.png"), pixels("out.png"))


def test_what_is_not_as_it_was(edit: Edit, tiny_bundle: Path, folder: Path) -> None:
    edit("-i", "in.png", "-i", "second.png", "-p", "x", "--steps", "1", "-o", "out.png", "--device", "cpu")
    swapped = edit("--like", "out.png", "-i", "second.png", "-i", "in.png", "-o", "x.png")
    assert "warning: second.png is not reference 1 that out.png was made from: it is reference 2\n" in swapped
    third = edit("--like", "out.png", "-i", "in.png", "-i", "second.png", "-i", "mask.png", "-o", "x.png")
    assert "warning: out.png was made without reference 3: mask.png changes it\n" in third
    message = edit("--like", "out.png", "-i", "in.png", "-o", "y.png")
    assert message.startswith(
        "error: out.png was made from 2 references, and its file does not say where they are"
    )
    assert not Path("y.png").exists()
    other = Path(shutil.copytree(tiny_bundle, folder / "other"))
    (other / "manifest.json").write_bytes((other / "manifest.json").read_bytes() + b"\n")
    message = edit("--like", "out.png", "-i", "in.png", "-i", "second.png", "-o", "x.png", bundle=other)
    assert message.startswith("warning: out.png was made with another bundle, kontext-random (sha256:")


def test_a_large_jpeg_is_decoded_as_it_was(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the default size it is decoded smaller, and the metadata have the size that came out of it."""
    monkeypatch.setattr(images, "REDUCE_ABOVE", 5000)
    Image.effect_mandelbrot((352, 192), (-2, -1.5, 1, 1.5), 50).convert("RGB").save("large.jpg")
    edit("-i", "large.jpg", "-p", "x", "--steps", "1", "-o", "out.png", "--device", "cpu")
    assert not edit("--like", "out.png", "-i", "large.jpg", "-o", "again.png")
    assert Path("out.png").read_bytes() == Path("again.png").read_bytes()


def test_pictures_that_do_not_say(edit: Edit) -> None:
    assert "in.png does not say what made it: it has no metadata of kontext-edit" in edit(
        "--like", "in.png", "-o", "x.png"
    )
    assert "nowhere.png does not exist" in edit("--like", "nowhere.png", "-o", "x.png")
    assert "is not a PNG" in edit("--like", __file__, "-o", "x.png")
    forged(steps="many")
    assert "strange.png: its metadata say steps 'many': it must be" in edit(
        "--like", "strange.png", "-o", "x.png"
    )
    assert not Path("x.png").exists()


def test_a_stranger_s_file_loads_no_library(edit: Edit) -> None:
    forged(
        references=[],
        running={"backend": "onnxruntime", "device": "auto", "options": {"provider": "/tmp/evil.so"}},
    )
    message = edit("--like", "strange.png", "-o", "x.png", "--steps", "1")
    assert "strange.png was made with --provider: give it again" in message
    assert "error" not in message


@pytest.mark.parametrize(
    ("running", "message"),
    [
        (
            {"backend": "evil\x1b[2J", "device": "cpu", "options": {}},
            "by 'evil\\x1b[2J' on 'cpu', which this does not have",
        ),
        (
            {"backend": "onnxruntime", "device": "abacus", "options": {}},
            "on 'abacus', which this does not have",
        ),
        (
            {"backend": "torch", "device": "cpu", "options": {"compute": "bf17"}},
            "error: compute 'bf17' is not known",
        ),
        (
            {"backend": "onnxruntime", "device": "cpu", "options": {"compute": "bf16"}},
            "error: --compute needs --backend",
        ),
        (
            {"backend": "torch", "device": "cpu", "options": {"cache": []}},
            "error: strange.png: its metadata say options",
        ),
    ],
)
def test_what_ran_it_may_be_strange(edit: Edit, running: dict[str, Any], message: str) -> None:
    forged(references=[], running=running)
    said = edit("--like", "strange.png", "-o", "x.png", "--steps", "1")
    assert message in said
    assert "\x1b" not in said


def test_another_version_is_named(folder: Path) -> None:
    forged()
    like = read_like(Path("strange.png"))
    like = replace(like, made=replace(like.made, version="9.9"))
    with pytest.warns(UserWarning, match="by kontext-export 9.9, and this is"):
        like.check_bundle(like.made.bundle, like.made.digest)


def test_loras_are_given_again(edit: Edit) -> None:
    forged(
        references=[],
        running=GIVEN["running"] | {"loras": [{"file": "style.safetensors", "sha256": "ab", "weight": 0.8}]},
    )
    message = edit("--like", "strange.png", "-o", "x.png")
    assert (
        "error: strange.png was made with the LoRA style.safetensors: give it again with --lora FILE:0.8"
        in message
    )
    like = read_like(Path("strange.png"))
    like.check_counts({}, 1)
    like.check_loras([LoadedLora("renamed.safetensors", "ab", 0.8)])
    with pytest.warns(UserWarning, match=r"strange.png was made with other LoRAs \(style.safetensors:0.8\)"):
        like.check_loras([LoadedLora("style.safetensors", "ab", 0.7)])


def test_a_server_s_answer_is_compared(folder: Path) -> None:
    style = {"file": "style.safetensors", "sha256": "ab", "weight": 0.8}
    forged(running=GIVEN["running"] | {"loras": [style]})
    like = read_like(Path("strange.png"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        like.check_answer(GIVEN | {"running": GIVEN["running"] | {"loras": [style]}})
    for loras in ([style | {"sha256": "cd"}], []):
        with pytest.warns(UserWarning, match=r"with other LoRAs \(style.safetensors:0.8\)"):
            like.check_answer(GIVEN | {"running": GIVEN["running"] | {"loras": loras}})
    with pytest.warns(UserWarning, match="with other LoRAs"):
        like.check_answer(GIVEN)
    other = GIVEN["bundle"] | {"digest": "sha256:" + "0" * 64}
    with pytest.warns(UserWarning, match="with another bundle"):
        like.check_answer(GIVEN | {"bundle": other, "running": GIVEN["running"] | {"loras": [style]}})
