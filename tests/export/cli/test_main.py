"""The command line: its flags, its defaults and its one-line errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kontext.export.cli import main, source_flags


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from kontext.export.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for flag in ("--fp32", "--fp16", "--bf16", "--fp8", "--force", "--output", "--version"):
        assert flag in done.stdout
    for command in ("kontext-export inspect ", "kontext-export sensitivity "):
        assert command in done.stdout


@pytest.mark.parametrize("command", [[], ["export"], ["inspect"], ["sensitivity"]])
def test_every_command_has_a_version(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main([*command, "--version"])
    assert not caught.value.code
    assert capsys.readouterr().out.startswith("kontext-export ")


def test_the_module_is_the_command() -> None:
    words = [sys.executable, "-m", "kontext.export.cli", "inspect", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: kontext-export inspect ")


def test_export_is_the_default_command() -> None:
    short, long = (
        main.parse(["model", "--fp8", "-o", "x"]),
        main.parse(["export", "model", "--fp8", "-o", "x"]),
    )
    assert short == long
    assert (short.model, short.quantization, short.output) == ("model", "fp8", Path("x"))


def test_a_model_named_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inspect").mkdir()
    (tmp_path / "inspect" / "model_index.json").touch()
    assert main.parse(["./inspect", "-o", "x"]).model == "./inspect"
    assert main.main(["inspect", "nothing"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == "warning: inspect is taken for the command; write ./inspect for the folder of that name"
    assert error == "error: nothing does not exist"


@pytest.mark.parametrize(
    ("arguments", "prog"),
    [
        (["-o", "x", "--fp16", "--bf16"], "kontext-export"),
        (["a", "b", "-o", "x"], "kontext-export"),
        (["--foo"], "kontext-export"),
        (["export", "--foo"], "kontext-export"),
        (["--batch", "0"], "kontext-export"),
        (["inspect"], "kontext-export inspect"),
        (["sensitivity", "-o", "x", "--foo"], "kontext-export sensitivity"),
    ],
)
def test_wrong_flags_are_one_line(
    arguments: list[str], prog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.endswith(f" ({prog} --help shows the flags)\n")
    assert error.count("\n") == 1


URL = "https://huggingface.co/x/y/resolve/main/a.safetensors"


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ([URL, "-o", "x"], "MODEL"),
        (["-o", "x", "--base", URL], "--base"),
        (["inspect", URL], "FILE"),
        (["sensitivity", URL, "-o", "x"], "MODEL"),
        *(
            (["-o", "x", flag, URL], flag)
            for flag in ("--vae", "--clip", "--t5", "--lora", "--calibrate", "--recipe")
        ),
        (["-o", "x", "--lora", f"{URL}:0.8"], "--lora"),
    ],
)
def test_urls_are_refused(words: list[str], argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In whole, with what would be right: a hub id where one is taken, else the command that downloads the file."""
    assert main.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: argument {argument}: takes files of this machine")
    assert f", not {URL}" in error
    hub = argument in ("MODEL", "--base")
    assert (
        ": write its hub id, x/y (" if hub else ": download it first, as by `hf download x/y a.safetensors"
    ) in error


def test_an_output_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    assert capsys.readouterr().err.startswith("error: -o OUT is missing")


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main.main([str(tmp_path / "no"), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'no'} does not exist")


def test_without_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_flags, "EMBEDDED", tmp_path)
    assert main.main(["-o", str(tmp_path / "out")]) == 2
    assert "embedded model" in capsys.readouterr().err


@pytest.mark.usefixtures("fast_trace")
def test_the_embedded_model_is_the_default(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_flags, "EMBEDDED", tiny_checkpoint)
    assert main.main(["-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "kontext-random: 0.5 M parameters, fp32 weights, fp32 compute" in printed
    assert f"kontext-edit {tmp_path / 'out'}" in printed


@pytest.mark.usefixtures("fast_trace")
def test_progress_bars_name_their_stage(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main.main([str(tiny_checkpoint), "-o", str(tmp_path / "out")]) == 0
    drawn = capsys.readouterr().err
    for stage in ("transformer weights", "text_encoder_2 weights", "graphs"):
        assert stage in drawn
