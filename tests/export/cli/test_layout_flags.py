"""`--to`: its one-line errors, and its summary."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kontext.export.cli.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--to bf -o x", "argument --to: 'bf' is not a layout: choose from diffusers, bfl"),
        (
            "--to bfl --nf4 -o x.safetensors",
            "--to bfl cannot hold --nf4: it holds --bf16, --fp16, --fp32; --nf4 goes with --to diffusers",
        ),
        ("--to bfl --steps 4 -o x.safetensors", "--steps is for bundles: it means nothing with --to bfl"),
        ("--to bfl --link-weights -o x.safetensors", "--link-weights is for bundles: it means nothing with"),
        ("--to bfl --calibrate none -o x.safetensors", "--calibrate is for bundles: it means nothing with"),
        ("--to bfl --kernels sm_89 -o x.safetensors", "--kernels is for bundles: it means nothing with"),
        ("--to bfl --plan-only", "--plan-only is for bundles: it means nothing with"),
        ("--to bfl --engine rtx -o x.safetensors", "--engine is for bundles: it means nothing with"),
        ("--to bfl", "-o OUT is missing: a file whose name ends in .safetensors to write"),
        ("--to diffusers", "-o OUT is missing: a folder to write"),
        ("--to bfl -o x.gguf", "-o x.gguf: the file's name must end in .safetensors"),
        ("--to gguf -o .gguf", "-o .gguf: the file's name needs something before .gguf"),
        ("--to gguf -o /", "error: / cannot be replaced: choose a name in it"),
        ("-o /", "error: / cannot be replaced: choose a name in it"),
        ("--to bfl -o no/x.safetensors", "is not a folder: make it first"),
    ],
)
def test_errors(
    words: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error.replace(f"{tmp_path}/", "")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_help_lists_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "bfl for Black Forest Labs' code" in " ".join(capsys.readouterr().out.split())


def test_names_of_any_bytes(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are recorded and shown with question marks, and OUT on one line."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    pytest.importorskip("gguf")
    lora = tmp_path / os.fsdecode(b"l\xff.safetensors")
    module = "transformer.single_transformer_blocks.0.proj_mlp"
    update = {"A": torch.ones(1, 64), "B": torch.ones(256, 1)}
    safetensors.save_file({f"{module}.lora_{side}.weight": each for side, each in update.items()}, lora)
    folder = tmp_path / "new\nline"
    words = [str(tiny_checkpoint), "--lora", f"{lora}:1"]
    assert main([*words, "--to", "diffusers", "-o", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  with l?.safetensors at 1: ")
    assert "new line" in lines[-1]
    record = json.loads((folder / "kontext-export.json").read_text(encoding="utf-8"))
    assert record["loras"] == [{"file": "l?.safetensors", "weight": 1}]
    transformer = next((tiny_checkpoint / "transformer").glob("*.safetensors"))
    named = tmp_path / os.fsdecode(b"s\xff.safetensors")
    shutil.copy(transformer, named)
    assert main([str(named), "--to", "gguf", "-o", str(tmp_path / os.fsdecode(b"\xff.gguf"))]) == 0
    assert capsys.readouterr().out.startswith("s? as gguf: ")


def test_the_summary(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.safetensors"
    assert main([str(tiny_checkpoint), "--to", "bfl", "--bf16", "-o", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " as bfl: 0." in lines[0]
    assert lines[0].endswith("parameters, bf16 weights")
    assert lines[1].split()[0] == "x.safetensors"
    assert "peak memory" in lines[3]
    assert lines[-1].startswith(f"{output} goes into ComfyUI's")


def test_a_gguf_file_has_the_name_that_is_given(tiny_checkpoint: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    output = tmp_path / "x.gguf"
    assert main([str(tiny_checkpoint), "--to", "gguf", "--name", "mine", "-o", str(output), "--quiet"]) == 0
    assert gguf.GGUFReader(output).get_field("general.name").contents() == "mine"
