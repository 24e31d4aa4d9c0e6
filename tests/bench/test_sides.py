"""Sides of an edit: names, what they need, and their command lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kontext.bench import sides
from kontext.errors import KontextError


def test_names_are_read_once_each() -> None:
    assert sides.parse_sides("onnxruntime, onnxruntime") == ["onnxruntime"]
    assert sides.parse_sides(None) == []


def test_a_side_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(KontextError, match=r"torchao-int8 needs torchao.*peers"):
        sides.parse_sides("torchao-int8")


def test_both_programs_are_given_the_same_edit(tmp_path: Path) -> None:
    settings = {"size": (96, 64), "steps": 4, "guidance": 2.5, "seed": 7}
    flags = sides.edit_flags(tmp_path, Image.new("RGB", (8, 8)), "make it blue", settings)
    assert (tmp_path / "in.png").is_file()
    ours = sides.command(sides.SIDES["openvino-bf16"], tmp_path, "cpu", flags)
    theirs = sides.command(sides.SIDES["diffusers-bf16-compiled"], tmp_path, "cpu", flags)
    assert all(word in words for word in flags for words in (ours, theirs))
    assert ours[-4:] == ["--backend", "openvino", "--compute", "bf16"]
    assert theirs[-4:] == ["--compute", "bf16", "--compiler", "inductor"]
