"""Steps with LoRAs are timed in every case."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench.loras.steps import PLAIN, step_times


def test_all_cases_are_timed(tiny_bundle: Path, slots_bundle: Path, tmp_path: Path) -> None:
    slots = Path(shutil.copytree(slots_bundle, tmp_path / "slots"))
    done: list[None] = []
    found = step_times(
        *("onnxruntime", tiny_bundle, slots),
        tokens=16,
        rank=4,
        repeat=2,
        warmup=1,
        done=lambda: done.append(None),
    )
    assert list(found) == [PLAIN, "no LoRA", "a LoRA of rank 4", "two of rank 2"]
    assert found[PLAIN]["ratio"] == 1
    assert all(case["seconds"]["count"] == 2 for case in found.values())
    assert len(done) == 12
