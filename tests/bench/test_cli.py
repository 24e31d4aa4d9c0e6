"""kontext-bench: every subcommand's help, and one line for what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kontext.bench import exporting
from kontext.bench.cli import main, sentence
from kontext.bench.registry import SUBCOMMANDS, Entry
from kontext.command import Parser


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
        (["demo", "b", "--seed", "-1"], "a seed is a whole number from 0 to 2^64 - 1, not -1"),
        (["capacity", "b", "--seed", "-1"], "a seed is a whole number from 0 to 2^64 - 1, not -1"),
        (["report", "b", "-o", "-"], "a report is written to a file, not to stdout"),
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


@pytest.mark.parametrize("entry", [each for each in SUBCOMMANDS if each.measures], ids=lambda each: each.name)
def test_where_json_goes_is_checked_before_anything_is_measured(
    entry: Entry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("the measurement began")

    pytest.importorskip("torch")
    monkeypatch.setattr(entry.load(), "run", measured)
    read = tmp_path / "read.json"
    read.write_text("{}")
    positional = {"coldstart": ["b"], "export": ["b"], "plans": []}
    for json, message in (
        (tmp_path, "it is a folder"),
        (read / "x.json", f"{read} is no folder"),
        (Path("/proc/nothing/x.json"), "cannot write /proc/nothing/x.json"),
        (Path(os.devnull), "it is no regular file"),
    ):
        words = [entry.name, *positional.get(entry.name, []), "--json", str(json)]
        with monkeypatch.context() as free:
            free.setattr(Parser, "error", lambda *_: None)  # whatever else the command needs
            assert main(words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_json_that_is_read_too_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("{}")
    (tmp_path / "link.json").symlink_to(file)
    for words in (["compare", str(file), "b.json"], ["capacity", str(file)]):
        for json in (file, tmp_path / "link.json"):
            assert main([*words, "--json", str(json)]) == 2
            assert "it is read too" in capsys.readouterr().err
    assert file.read_text() == "{}"


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
