"""The memory benchmark's parts on a small bundle; its figures are for machines that are quiet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench.memory import predicted
from kontext.quant.memory import CPU, Workload
from kontext.runtime.bundle import GRAPHS


def test_the_prediction_has_every_weight(tiny_bundle: Path) -> None:
    peaks = predicted.predict(tiny_bundle, Workload(128, 128))
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert set(peaks) == set(GRAPHS)
    for network, peak in peaks.items():
        weights = manifest["files"][f"weights/{network}.safetensors"]["size"]
        assert peak > CPU.overhead + 0.9 * weights


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a stage is read from /proc")
def test_an_edit_reports_the_peak_of_every_stage(tiny_bundle: Path) -> None:
    words = [sys.executable, "-m", "kontext.bench.memory.child", str(tiny_bundle), "128x128", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    assert set(peaks) == set(GRAPHS)
    assert all(20e6 < peak < 1e9 for peak in peaks.values())


def test_tables() -> None:
    peaks = dict.fromkeys(GRAPHS, 100_000_000)
    entry = {"measured": peaks, "predicted": {**peaks, "transformer": 105_000_000}}
    result = {"bundles": {"fp32": entry}, "size": [512, 512], "steps": 2}
    table = predicted.tables(result)[0]
    assert table.rows[-1] == ["edit", "100", "105 (+5%)"]
