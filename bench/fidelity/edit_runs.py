"""Runs of held-out edits: freely, recorded, and along another run's trajectory (teacher forcing)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...runtime import Pipeline
from ...runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from ...tiny.edits import Edit
from ...tiny.judge import judge
from ...tiny.scenes import render

Array = NDArray[Any]


@dataclass
class EditRun:
    """One edit by one bundle: the picture, the latents after each step, and the judge's verdict."""

    picture: PIL.Image.Image
    latents: list[Array]
    success: bool


def run_edit(pipe: Pipeline, edit: Edit, steps: int, seed: int) -> EditRun:
    latents: list[Array] = []
    source = None if edit.source is None else PIL.Image.fromarray(render(edit.source))
    picture = pipe.edit(
        source, edit.prompt, steps=steps, seed=seed, callback=lambda _step, _total, x: latents.append(x)
    )
    return EditRun(picture, latents, bool(judge(picture, edit).success))


@dataclass
class Trajectory:
    """For each step of a run, the latents that it started from and the velocity there."""

    latents: list[Array] = field(default_factory=list)
    velocities: list[Array] = field(default_factory=list)


class Recorder(ForwardingBackend):
    """A backend that records the transformer's inputs and outputs as a trajectory."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.trajectory = Trajectory()

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        outputs = super().run(graph, inputs, step)
        if graph == "transformer":
            self.trajectory.latents.append(np.array(inputs["target"]))
            self.trajectory.velocities.append(np.array(outputs["velocity"]))
        return outputs


class TeacherForced(ForwardingBackend):
    """A backend that computes every velocity at the reference's latents but returns the reference's velocity: the run
    follows the reference's trajectory.

    `noise` and `signal` are, per step, the energy of the velocity's error and of the reference's velocity.
    """

    def __init__(self, backend: Backend, trajectory: Trajectory) -> None:
        super().__init__(backend)
        self.trajectory = trajectory
        self.noise: list[float] = []
        self.signal: list[float] = []

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        if step is None:
            return super().run(graph, inputs)
        forced = {**inputs, "target": self.trajectory.latents[step.index]}
        velocity = super().run(graph, forced, step)["velocity"]
        expected = self.trajectory.velocities[step.index]
        self.noise.append(float(np.square(velocity - expected, dtype=np.float64).sum()))
        self.signal.append(float(np.square(expected, dtype=np.float64).sum()))
        return {"velocity": expected}
