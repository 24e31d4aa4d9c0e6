"""Flags for number formats that contradict each other, or need another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.export.cli.main import main

STATIC = {"rules": [{"format": "int8", "activations": "int8", "rounding": "static"}]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int4", "--static-inputs"], "--static-inputs only applies with --fp8 or --int8"),
        (["--static-inputs"], "--static-inputs only applies with --fp8 or --int8"),
        (["--fit", "8GB", "--static-inputs"], "--static-inputs only applies with --fp8 or --int8"),
        (["--int8", "--activations", "fp8"], "--activations fp8 only applies with --int4"),
        (["--activations", "int8"], "--activations int8 only applies with --int4"),
        (["--int4", "--activations", "int8", "--weight-only"], "cannot be combined with --weight-only"),
        (["--int4", "--activations", "fp8", "--calibrate", "none"], "--activations fp8 needs a calibration"),
        (["--int8", "--static-inputs", "--weight-only"], "leave one of them out"),
        (["--int8", "--static-inputs", "--calibrate", "none"], "--static-inputs needs a calibration"),
        (["--recipe", "RECIPE", "--calibrate", "none"], "need a calibration: name a folder with --calibrate"),
    ],
)
def test_what_static_inputs_need(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "static.json"
    recipe.write_text(json.dumps(STATIC), encoding="utf-8")
    words = [str(recipe) if flag == "RECIPE" else flag for flag in flags]
    assert main(["-o", str(tmp_path / "out"), *words, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
