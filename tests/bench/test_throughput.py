"""Throughput by batch: files written, shares of the limits by hand, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kontext.bench import throughput
from kontext.bench.cli import main

pytestmark = [
    # The random model's small tokenizer splits a prompt into more tokens than fit.
    pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning"),
]

MACHINE = {"cpu": "Abacus", "cores": 2, "memory_gib": 24.0, "gpu": [], "python": "3.11.7", "libraries": {}}


def percentiles(seconds: float) -> dict[str, Any]:
    return {"median": seconds, "p95": seconds, "count": 5, "samples": [seconds] * 5}


def test_batches_are_measured(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "matrix_rates", lambda _sizes: {"fp32": 1e9, "bf16": 2e9})
    monkeypatch.setattr(throughput, "copy_bandwidth", lambda: 1e9)
    file = tmp_path / "throughput.json"
    words = [
        "throughput",
        str(tiny_bundle),
        "--batches",
        "1,2",
        "--steps",
        "2",
        "--repeat",
        "2",
        "--warmup",
        "0",
    ]
    assert main([*words, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert list(result["batches"]) == ["1", "2"]
    for entry in result["batches"].values():
        assert entry["step"]["count"] == 4
        assert len(entry["edit"]["samples"]) == 2
        assert entry["edit"]["median"] > 2 * entry["step"]["median"] > 0


def test_shares_of_the_limits() -> None:
    """Two edits at once: 2 x 4 GFLOP in 0.5 s are 16 GFLOP/s, half of 32; 2 GB in 0.5 s are 4 GB/s, a fifth of 20."""
    result = {
        "model": "m",
        "precision": "fp32",
        "device": "cpu",
        "steps": 4,
        "size": [128, 128],
        "batches": {
            "1": {"step": percentiles(0.4), "edit": percentiles(2.0), "joules": None},
            "2": {"step": percentiles(0.5), "edit": percentiles(2.5), "joules": None},
        },
        "step_flops": 4e9,
        "weight_bytes": 2e9,
        "matrix_rates": {"fp32": 32e9, "bf16": 64e9},
        "copy_bandwidth": 20e9,
        "energy_source": None,
        "machine": MACHINE,
    }
    (table,) = throughput.tables(result)
    assert table.rows[1] == ["2", "500.0", "500.0", "2500", "2500", "0.80", "1.60x", "16", "50%", "20%"]
    assert "32 GFLOP/s in fp32 and 64 GFLOP/s in bf16" in throughput.footer(result)


def test_energy_is_that_of_an_edit() -> None:
    entry = {"step": percentiles(0.5), "edit": percentiles(2.0), "joules": percentiles(30.0)}
    result = {
        "batches": {"4": entry},
        "step_flops": 1e9,
        "weight_bytes": 1,
        "matrix_rates": None,
        "copy_bandwidth": None,
        "energy_source": "NVML",
    }
    (table,) = throughput.tables(result)
    assert table.rows == [["4", "500.0", "500.0", "2000", "2000", "2.00", "1.00x", "8", "7.5"]]


@pytest.mark.parametrize(
    ("words", "message"), [(["--batches", "1,x"], "--batches takes"), (["--repeat", "0"], "--repeat must be")]
)
def test_bad_input_is_one_line(
    tiny_bundle: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["throughput", str(tiny_bundle), *words]) == 2
    assert message in capsys.readouterr().err
