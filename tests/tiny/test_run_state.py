"""The state of a training stage on disk, and what its progress bar shows."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.tiny import run_state  # noqa: E402


def test_a_saved_state_is_restored(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.Module, run_state.Average, dict[str, torch.optim.Optimizer]]:
        model = torch.nn.Linear(3, 2)
        return model, run_state.Average(model, 0.9), {"adam": torch.optim.AdamW(model.parameters())}

    torch.manual_seed(0)
    model, average, optimizers = parts()
    model(torch.ones(1, 3)).sum().backward()
    optimizers["adam"].step()
    average.update(model, 5)
    run_state.save(tmp_path / "s.safetensors", model, average, optimizers, {"step": 7, "seconds": 1.5})
    other, other_average, other_optimizers = parts()
    counters = run_state.load(tmp_path / "s.safetensors", other, other_average, other_optimizers)
    assert counters == {"step": 7, "seconds": 1.5}
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other_average.weights["weight"], average.weights["weight"])
    moments = [each["adam"].state_dict()["state"][0]["exp_avg"] for each in (optimizers, other_optimizers)]
    assert torch.equal(*moments)
    assert run_state.load(tmp_path / "none", other, other_average, other_optimizers) == {}


def test_a_shown_mean_starts_at_the_first_value() -> None:
    smooth = run_state.RunningMean()
    for value in (4.0, 2.0):
        smooth.add(value)
    assert smooth.value == 3.0
