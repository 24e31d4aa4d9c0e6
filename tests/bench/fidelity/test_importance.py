"""The importance matrix: mean squares of a linear's inputs, of the embedded model alone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch

from kontext.bench.fidelity import importance
from kontext.quant.statistics import InputStatistics, Statistics
from kontext.runtime.bundle import Bundle


def test_it_is_the_mean_square_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(50, 2048, generator=torch.Generator().manual_seed(0))  # two blocks of moments
    collected = InputStatistics.empty(2048)
    collected.add(rows[:20], 0)
    collected.add(rows[20:], 3)
    found = Statistics({"transformer": {"a.weight": collected}})
    monkeypatch.setattr(importance, "calibrate", lambda *_: found)
    each = importance.embedded_importance.__wrapped__()[("transformer", "a.weight")]
    assert torch.allclose(each, rows.square().mean(0), rtol=1e-5)


def test_other_models_have_none(tiny_bundle: Path) -> None:
    why = importance.why_unavailable(Bundle.open(tiny_bundle))
    assert why is not None
    assert why.startswith("only the embedded model is calibrated here")
