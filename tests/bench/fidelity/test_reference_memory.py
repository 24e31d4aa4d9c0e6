"""Memory for the reference's runs: the bytes of arrays that a run really keeps, and a line where they do not fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench.cases import scene_cases
from kontext.bench.fidelity import reference_memory
from kontext.bench.fidelity.benchmark import reference_runs
from kontext.errors import KontextError
from kontext.runtime import Pipeline


def test_the_estimate_is_what_a_run_keeps(tiny_bundle: Path) -> None:
    pipe = Pipeline.load(tiny_bundle, device="cpu")
    (known,) = reference_runs(pipe, scene_cases(1, 0)[:1], 2, 0, lambda: None)
    kept = sum(each.nbytes for each in [*known.velocities, *known.run.latents])
    assert (
        kept <= reference_memory.bytes_per_edit(pipe.bundle, 2) < 1.2 * kept
    )  # of the largest preferred size


def test_too_many_edits_are_one_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Pipeline.load(tiny_bundle, device="cpu").bundle
    each = reference_memory.bytes_per_edit(bundle, 28)
    monkeypatch.setattr(
        reference_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * each)
    )
    reference_memory.check_memory(bundle, 10, 28)
    with pytest.raises(KontextError, match=r"^11 edits of 28 steps need .* take up to 10 edits \(-n\)$"):
        reference_memory.check_memory(bundle, 11, 28)
