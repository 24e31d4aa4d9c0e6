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
    for flag in ("--fp32", "--fp16", "--bf16", "--fp8", "--force", "--output"):
        assert flag in done.stdout


@pytest.mark.parametrize("arguments", [["-o", "x", "--fp16", "--bf16"], ["a", "b", "-o", "x"]])
def test_wrong_flags(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_output_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    assert capsys.readouterr().err.startswith("error: say where to: -o OUT writes a bundle")


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
