"""Teacher forcing: records the velocities of a reference run, then measures another backend's along the same
trajectory.

The sampler continues every step with the recorded velocity, so errors do not accumulate and steps can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep

Array = NDArray[Any]


class Recorder(ForwardingBackend):
    """Records the transformer's velocity at every step of one run of the sampler."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.velocities: list[Array] = []

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        outputs = super().run(graph, inputs, step)
        if step is not None:
            self.velocities.append(np.array(outputs["velocity"]))
        return outputs


class TeacherForced(ForwardingBackend):
    """Returns the recorded velocity at every step, and measures the backend's own velocity against it.

    Args:
        backend: the backend to measure.
        velocities: recorded by `Recorder`, with the same noise and number of steps.
        steps: where to measure; the transformer does not run at others. None: everywhere.
    """

    def __init__(
        self, backend: Backend, velocities: Sequence[Array], steps: Collection[int] | None = None
    ) -> None:
        super().__init__(backend)
        self.velocities, self.steps = velocities, steps
        self.noise: dict[int, Array] = {}
        """Step → energy of the velocity's error, of each row [rows]."""
        self.signal: dict[int, Array] = {}
        """Step → energy of the recorded velocity, of each row [rows]."""

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        if step is None:
            return super().run(graph, inputs)
        expected = self.velocities[step.index]
        if self.steps is None or step.index in self.steps:
            error = super().run(graph, inputs, step)["velocity"] - expected
            self.noise[step.index], self.signal[step.index] = row_energies(error), row_energies(expected)
        return {"velocity": expected}


def row_energies(velocity: Array) -> Array:
    """Sums of squares [rows], fp64."""
    return np.square(velocity, dtype=np.float64).reshape(len(velocity), -1).sum(axis=1)
