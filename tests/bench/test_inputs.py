"""What is edited: a picture of the user's, or a scene."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.bench.cli import main
from kontext.bench.inputs import picture_and_prompt


def test_a_picture_that_is_none(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("missing.png", "text.png"):
        assert main(["latency", str(tiny_bundle), "--image", str(tmp_path / name)]) == 2
        assert f"{name}" in capsys.readouterr().err


def test_a_scene_has_the_size_and_an_instruction() -> None:
    picture, prompt = picture_and_prompt(None, None, (96, 64))
    assert picture.size == (96, 64)
    assert prompt
    assert picture_and_prompt(None, "make it night", (96, 64))[1] == "make it night"
