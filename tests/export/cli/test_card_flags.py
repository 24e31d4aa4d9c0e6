"""--for and --fidelity: plans without an export, an export by one, and flags that cannot be combined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.export.cli.main import main


def test_a_plan_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--for", "4090", "--engine", "rtx", "--plan-only"]) == 0
    out = capsys.readouterr().out
    assert "kontext-tiny on RTX 4090 (24 GB) with TensorRT for RTX" in out
    assert "planned, not run" in out
    assert [line for line in out.splitlines() if "RTX 4090 has no NVFP4" in line]
    assert "chosen: --bf16" in out


def test_the_plan_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    assert main(["--for", "RTX 3060", "--fidelity", "25", "-o", str(tmp_path / "b"), "--quiet"]) == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["plan"]["card"] == "RTX 3060"
    assert manifest["precision"]["weights"] == manifest["plan"]["chosen"].split("--")[2].strip()
    assert main(["inspect", str(tmp_path / "b")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "4095"], "unknown card '4095': nearest are RTX 4090"),
        (["--for", "4090", "--fit", "8GB"], "--for cannot be combined with --fit"),
        (["--for", "4090", "--int8"], "--for cannot be combined with --int8"),
        (["--for", "4090", "--gpu", "sm_89"], "--for cannot be combined with --gpu"),
        (["--for", "4090", "--fp32"], "--fp32 does not use them"),
        (["--for", "4090", "--engine", "tensorrt"], "--for plans for --engine rtx"),
        (
            ["--for", "T4"],
            "neither engines nor the torch backend's kernels run on T4: export with --fp16 --int4",
        ),
        (["--for", "4090", "--fidelity", "101"], "'101' is not a number of decibels from 0 to 100"),
        (["--fidelity", "20"], "--fidelity only applies with --for"),
        (["--size", "64x64"], "--size only applies with --fit or --for"),
    ],
)
def test_faults_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--plan-only"] if "--size" not in words else [*words, "-o", "x"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
