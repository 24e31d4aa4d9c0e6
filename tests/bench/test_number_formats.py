"""Formats of a bundle: what its manifest says, the same for every benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("scipy")

from kontext.bench.cli import main
from kontext.bench.number_formats import formats_line, formats_of
from kontext.runtime.bundle import Bundle

FP8 = {"precision": "fp8", "compute": "fp32"}


def test_formats_are_of_the_manifest(bundles: dict[str, Path]) -> None:
    assert formats_of(Bundle.open(bundles["fp8"])) == FP8
    assert formats_of(Bundle.open(bundles["fp32"])) == {"precision": "fp32", "compute": "fp32"}


def test_lines() -> None:
    assert formats_line(FP8) == "fp8 weights, computing in fp32"
    assert formats_line({"precision": "fp32", "compute": "fp32"}) == "fp32"
    assert formats_line({"precision": "fp32"}) == "fp32"  # of a result before `compute` was in it


def test_benchmarks_of_speed_say_the_same(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--steps", "1", "--repeat", "1"]
    commands = {
        "latency": [*few, "--warmup", "0"],
        "throughput": [*few, "--warmup", "0", "--batches", "1"],
        "batch": [*few, "--no-ray", "--edits", "2"],
    }
    for name, flags in commands.items():
        output = tmp_path / f"{name}.json"
        assert main([name, str(bundles["fp8"]), *flags, "--json", str(output)]) == 0
        result = json.loads(output.read_text())
        assert {key: result[key] for key in FP8} == FP8
        assert ", fp8 weights, computing in fp32, cpu, " in capsys.readouterr().out
