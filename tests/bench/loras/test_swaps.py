"""LoRAs are changed between steps, and a large one is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench.loras.swaps import read_times, swap_times


def test_changes_and_reads_are_timed(slots_bundle: Path, tmp_path: Path) -> None:
    slots = Path(shutil.copytree(slots_bundle, tmp_path / "slots"))
    for backend in ("onnxruntime", "torch"):
        found = swap_times(backend, slots, rank=4, repeat=3)
        assert {name: each["count"] for name, each in found.items()} == {"load": 3, "first": 3, "later": 3}
    reads = read_times(slots, size=10**7, repeat=1)
    assert reads["bytes"] == pytest.approx(10**7, rel=0.1)
    assert list(reads["seconds"]) == ["read from the disk", "load from the disk", "read", "load"]
