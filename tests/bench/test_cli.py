"""kontext-bench: what it refuses, in one line; its tables from results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kontext.bench import coldstart, exporting
from kontext.bench.cli import main

MACHINE = {
    "cpu": "Abacus",
    "cores": 2,
    "memory_gib": 24.0,
    "gpu": [],
    "python": "3.11.7",
    "libraries": {"onnxruntime": "1.32.0", "numpy": "2.4.6"},
}


def cost(seconds: float, mebibytes: float) -> dict[str, Any]:
    return {
        "seconds": {"median": seconds, "p95": seconds * 1.1, "count": 5},
        "peak_bytes": {"median": mebibytes * 2**20, "p95": mebibytes * 2**20, "count": 5},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
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

    monkeypatch.setattr(exporting, "measure", interrupt)
    assert main(["export", str(tmp_path)]) == 130


def test_cold_start_table_and_footer() -> None:
    result = {
        "steps": 4,
        "size": [128, 128],
        "sides": {"kontext-edit": cost(1.0, 100), "diffusers": cost(5.5, 520)},
        "imports": {"nothing": cost(0.02, 10), "kontext.runtime": cost(0.15, 60)},
        "psnr_db": 61.2,
        "machine": MACHINE,
    }
    (table,) = coldstart.tables(result)
    assert table.rows[0] == ["wall time [s]", "1.00", "1.10", "5.50", "6.05", "5.50x"]
    assert table.rows[1][-1] == "5.20x"
    assert "takes 0.13 s" in coldstart.footer(result)
    assert "Abacus, 2 cores, 24 GiB; onnxruntime 1.32.0; Python 3.11.7" in coldstart.footer(result)


def test_export_table() -> None:
    result = {"formats": {"fp8": {**cost(12.34, 900), "bundle_bytes": 2**22}}, "machine": MACHINE}
    (table,) = exporting.tables(result)
    assert table.rows == [["fp8", "12.3", "900", "4.0"]]
