"""Teacher forcing with a backend whose velocities are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kontext.export.calibration.teacher_forcing import Recorder, TeacherForced
from kontext.runtime.backends.protocol import SamplerStep


class Constant:
    """Every velocity is `value`; counts the runs of the transformer."""

    def __init__(self, value: float) -> None:
        self.value, self.runs = value, 0

    def hold(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(arrays)

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        if graph != "transformer":
            return {"pooled": np.full(3, self.value, np.float32)}
        self.runs += 1
        return {"velocity": np.full((1, 4, 2), self.value, np.float32)}

    def release(self, *graphs: str) -> None:
        pass


def sample(backend: Any, steps: int = 4) -> list[float]:
    """The velocities that a sampler gets."""
    runs = [backend.run("transformer", {}, SamplerStep(index, steps)) for index in range(steps)]
    return [float(outputs["velocity"].mean()) for outputs in runs]


def test_a_forced_run_follows_the_recorded_velocities() -> None:
    recorder = Recorder(Constant(2))
    assert sample(recorder) == [2] * 4
    forced = TeacherForced(Constant(3), recorder.velocities)
    assert sample(forced) == [2] * 4
    assert forced.noise == dict.fromkeys(range(4), 8 * 1**2)
    assert forced.signal == dict.fromkeys(range(4), 8 * 2**2)


def test_only_measured_steps_run() -> None:
    recorder = Recorder(Constant(2))
    sample(recorder)
    backend = Constant(1)
    forced = TeacherForced(backend, recorder.velocities, steps=(1, 3))
    assert sample(forced) == [2] * 4
    assert backend.runs == 2
    assert list(forced.noise) == list(forced.signal) == [1, 3]


@pytest.mark.parametrize("wrap", [Recorder, lambda backend: TeacherForced(backend, [])])
def test_other_graphs_run_unchanged(wrap: Any) -> None:
    assert wrap(Constant(5)).run("text_encoder", {})["pooled"].tolist() == [5, 5, 5]
