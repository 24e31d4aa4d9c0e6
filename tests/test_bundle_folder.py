"""What is a bundle and what only has a file of the same name; the record of a bundle's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kontext.bundle_folder import bundle_with, clean, is_bundle, recorded, refuse_bundle
from kontext.errors import KontextError


def write_manifest(folder: Path, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("text", "graph", "expected"),
    [
        ('{"format": "kontext-bundle", "format_version": 99}', False, True),
        ('{"name": "a web app", "icons": []}', False, False),
        ('{"name": "a web app", "icons": []}', True, False),
        ("[1]", True, False),
        ('{"format": "kontext-bu', False, False),
        ('{"format": "kontext-bu', True, True),
        (None, True, False),
    ],
)
def test_what_is_a_bundle(text: str | None, graph: bool, expected: bool, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    if graph:
        (tmp_path / "transformer.onnx").touch()
    assert is_bundle(tmp_path) == expected
    assert bundle_with(tmp_path) == (tmp_path if expected else None)


def test_files_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_manifest(tmp_path / "b", format="kontext-bundle", files={"weights/a.safetensors": {}})
    assert bundle_with(folder / "weights" / "a.safetensors") == folder
    assert bundle_with(folder / "manifest.json") == folder
    assert bundle_with(folder / "weights" / "mine.safetensors") is None
    assert bundle_with(tmp_path / "a.safetensors") is None
    monkeypatch.chdir(folder / ".." / "b")
    assert bundle_with(Path("weights/a.safetensors")) == folder


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": {"model": "o/n@abc"}}, "recorded: o/n@abc"),
        (
            {
                "source": {"model": "a.gguf", "base": "dev", "vae": "ae.safetensors", "variant": "fp16"},
                "model": {"loras": [{"file": "s.safetensors", "weight": 0.5}, 3]},
            },
            "recorded: a.gguf --base dev --vae ae.safetensors --variant fp16 --lora s.safetensors:0.5",
        ),
        ({"model": {"name": "old"}}, "not recorded; the model is called old"),
        ({"source": [], "model": 3}, "not recorded; the model is called nothing"),
        ({"source": {"model": "a\n\x1b[31mb"}}, "recorded: a??[31mb"),
    ],
)
def test_the_record(fields: dict[str, Any], expected: str) -> None:
    assert recorded(fields) == expected


def test_refusals_name_the_record(tmp_path: Path) -> None:
    folder = write_manifest(
        tmp_path / "b", format="kontext-bundle", files={"weights/a": {}}, source={"model": "flux"}
    )
    with pytest.raises(
        KontextError, match=r"b is a bundle: export again from its checkpoint \(recorded: flux\)$"
    ):
        refuse_bundle(folder)
    with pytest.raises(KontextError, match=r"weights/a is a file of the bundle .*b: export again from"):
        refuse_bundle(folder / "weights" / "a")
    with pytest.raises(KontextError, match=r"b is a bundle: --base takes a part of a checkpoint \(recorded"):
        refuse_bundle(folder, "--base")
    refuse_bundle(write_manifest(tmp_path / "app", name="a web app"))


def test_a_clean_text_is_one_line() -> None:
    assert clean("\x1b[31mEVIL\nLINE2\u2028\u202e\ufeff") == "?[31mEVIL?LINE2???"
    assert clean("é 日本") == "é 日本"
