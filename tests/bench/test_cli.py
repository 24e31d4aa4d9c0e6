"""kontext-bench: every subcommand's help, and one line for what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kontext.bench import exporting
from kontext.bench.cli import main, sentence
from kontext.bench.registry import SUBCOMMANDS, Entry


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND (kontext-bench --help shows the flags)"),
        (["speed"], "invalid choice: 'speed'"),
        (["latency", "b", "--stepz", "4"], "arguments: --stepz 4 (kontext-bench latency --help"),
        (["gpu", "--device", "tpu"], "(kontext-bench gpu --help shows the flags)"),
        (["latency", "b", "--size", "128"], "--size takes WIDTHxHEIGHT"),
        (["latency", "b", "--steps", "0"], "--steps must be at least 1"),
        (["latency", "b", "--repeat", "0"], "--repeat must be at least 1"),
        (["latency", "b", "--warmup", "-1"], "--warmup must be at least 0"),
        (["coldstart", "b", "--repeat", "-2"], "--repeat must be at least 1"),
        (["export", "--formats", "fp32,fp7"], "not 'fp7'"),
        (["edits", "b", "--steps", "28,none"], "--steps takes positive whole numbers"),
        (["edits", "b", "-n", "0"], "--count must be at least 1"),
        (["demo", "b", "--steps", "0"], "--steps must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(tmp_path / word) if word == "b" else word for word in words]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["latency", "coldstart", "edits", "demo"])
def test_a_bundle_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [command, str(tmp_path / "nothing")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "nothing" in error
    assert error.count("\n") == 1


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "measure_exports", interrupt)
    assert main(["export", str(tmp_path)]) == 130


@pytest.mark.parametrize("entry", SUBCOMMANDS, ids=lambda entry: entry.name)
def test_every_subcommand_has_help(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    with pytest.raises(SystemExit) as ended:
        main([entry.name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: kontext-bench {entry.name} ")
    assert ("--json FILE" in shown) is (entry.measures or entry.name == "compare")
    assert "--version" in shown


def test_the_list_of_subcommands_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kontext.bench.cli import parser; text = parser(None).format_help(); "
        "assert 'latency' in text; print(*{'torch', 'numpy', 'PIL', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_description_is_a_modules_first_paragraph() -> None:
    assert sentence("One\ntwo.\n\nThree.") == "One two."
    assert sentence(None) == ""
