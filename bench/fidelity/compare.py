"""How close bundles stay to a reference bundle: the same edits, by seed, at three levels.

(a) The velocity's signal-to-noise ratio in dB along the reference's own trajectory ("teacher forced": every step starts
    from the reference's latents, so errors do not add up and steps can be compared).
(b) The final picture of a free run by every measure of `fidelity_pictures`, and the latents' distance from the
    reference's after every step.
(c) The edits that the embedded judge accepts.

A whole trajectory's PSNR alone says little: it mostly measures how fast two runs part. Peers (`peers`) go through the
same as our bundles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from tqdm import tqdm

from ...decibels import decibels
from ...errors import KontextError
from ...runtime import Pipeline
from ...runtime.bundle import Bundle
from ...tiny.edits import KINDS, Edit
from ...tiny.judge import judge
from ...tiny.scenes import render
from ..edits import held_out
from ..machine import describe
from . import bits, peers
from . import pictures as fidelity_pictures

Array = NDArray[Any]


@dataclass
class Trajectory:
    """A reference run: for each step the latents it started from and the velocity there."""

    latents: list[Array] = field(default_factory=list)
    velocities: list[Array] = field(default_factory=list)


class Recorder:
    """A backend that notes what the transformer was asked and what it answered."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.trajectory = backend, Trajectory()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs: dict[str, Any] = self.backend.run(graph, inputs)
        if graph == "transformer":
            self.trajectory.latents.append(np.array(inputs["target"]))
            self.trajectory.velocities.append(np.array(outputs["velocity"]))
        return outputs


class TeacherForced:
    """A backend that is asked for every velocity at the reference's latents; the run then goes on as the reference's.

    `noise` and `signal` are each step's energy of the velocity's error and of the reference's velocity.
    """

    def __init__(self, backend: Any, trajectory: Trajectory) -> None:
        self.backend, self.trajectory = backend, trajectory
        self.noise: list[float] = []
        self.signal: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if graph != "transformer":
            outputs: dict[str, Any] = self.backend.run(graph, inputs)
            return outputs
        step = len(self.noise)
        asked = {**inputs, "target": self.trajectory.latents[step]}
        velocity, expected = self.backend.run(graph, asked)["velocity"], self.trajectory.velocities[step]
        self.noise.append(float(np.square(velocity - expected, dtype=np.float64).sum()))
        self.signal.append(float(np.square(expected, dtype=np.float64).sum()))
        return {"velocity": expected}


@dataclass
class Run:
    """One edit by one bundle."""

    picture: PIL.Image.Image
    latents: list[Array]
    success: bool


def free_run(pipe: Pipeline, edit: Edit, steps: int, seed: int) -> Run:
    latents: list[Array] = []
    source = None if edit.source is None else PIL.Image.fromarray(render(edit.source))
    picture = pipe.edit(
        source, edit.prompt, steps=steps, seed=seed, callback=lambda _step, _total, x: latents.append(x)
    )
    return Run(picture, latents, bool(judge(picture, edit).success))


@dataclass
class Reference:
    """What the reference made of one edit."""

    edit: Edit
    seed: int
    run: Run
    trajectory: Trajectory


def reference_runs(
    pipe: Pipeline, steps: int, count: int, seed: int, done: Callable[[], object]
) -> list[Reference]:
    """`count` held-out edits of each kind."""
    result: list[Reference] = []
    backend = pipe.backend
    edits = [edit for kind in KINDS for edit in held_out(kind, count, seed)]
    for number, edit in enumerate(edits):
        recorder = Recorder(backend)
        pipe.backend = recorder
        result.append(
            Reference(edit, seed + number, free_run(pipe, edit, steps, seed + number), recorder.trajectory)
        )
        done()
    pipe.backend = backend
    return result


@dataclass
class Candidate:
    """A bundle to be measured, ours or a peer's."""

    name: str
    about: dict[str, Any]
    pipe: Pipeline
    layer_bits: float | None
    file_bits: float | None


def compare(
    candidate: Candidate,
    references: Sequence[Reference],
    pictures: Mapping[str, fidelity_pictures.Compare],
    done: Callable[[], object],
) -> dict[str, Any]:
    """Everything that is measured of one candidate, as JSON."""
    pipe, backend = candidate.pipe, candidate.pipe.backend
    steps = len(references[0].trajectory.velocities)
    noise, signal, distances = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    each: dict[str, list[float]] = {name: [] for name in pictures}
    successes: list[bool] = []
    for known in references:
        found = free_run(pipe, known.edit, steps, known.seed)
        successes.append(found.success)
        for name, measure in pictures.items():
            each[name].append(measure(found.picture, known.run.picture))
        for step, (ours, theirs) in enumerate(zip(found.latents, known.run.latents, strict=True)):
            apart, whole = (np.square(x, dtype=np.float64).sum() for x in (ours - theirs, theirs))
            distances[step] += np.sqrt(apart / whole) / len(references)
        forced = TeacherForced(backend, known.trajectory)
        pipe.backend = forced
        free_run(pipe, known.edit, steps, known.seed)
        pipe.backend = backend
        noise += forced.noise
        signal += forced.signal
        done()
    expected = [known.run.success for known in references]
    result = {
        **candidate.about,
        "bits_per_weight": rounded(candidate.layer_bits, 3),
        "bits_per_weight_files": rounded(candidate.file_bits, 3),
        "velocity_snr": round(decibels(signal.sum(), noise.sum()), 2),
        "velocity_snr_steps": [round(decibels(*pair), 2) for pair in zip(signal, noise, strict=True)],
        "latent_distance_steps": [round(float(distance), 6) for distance in distances],
        "lost_edits": round((sum(expected) - sum(successes)) / len(references), 4),
        "success_each": successes,
    }
    for name, values in each.items():
        digits = fidelity_pictures.MEASURES[name].digits + 1
        result[name] = round(float(np.mean(values)), digits)
        result[f"{name}_each"] = [round(value, digits) for value in values]
    return result


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def measure(
    reference: Path,
    bundles: Sequence[Path],
    *,
    steps: int,
    count: int,
    seed: int,
    peer_names: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Runs `count` held-out edits of each kind through the reference, every bundle, and every peer.

    Raises:
        KontextError: a bundle is not of the reference's model, or two have one name; a peer cannot quantize it.
    """
    teacher = Pipeline.load(reference)
    opened = open_bundles(teacher.bundle, bundles)
    layers = bits.common_layers(teacher.bundle, list(opened.values()))
    if peer_names and not any(layers[graph] for graph in bits.COUNTED):
        raise KontextError(
            "none of the bundles is quantized: peers quantize the layers that one of ours does"
        )
    pictures, absent = fidelity_pictures.available()
    entries: dict[str, dict[str, Any]] = {"bundles": {}, "peers": {}}
    runs = (1 + len(opened) + len(peer_names)) * len(KINDS) * count
    with tqdm(total=runs, desc="edits", unit="edit", disable=not progress) as bar:
        references = reference_runs(teacher, steps, count, seed, bar.update)
        # One candidate at a time: a peer's bundle is as large as the reference.
        for name, bundle in opened.items():
            entries["bundles"][name] = compare(
                ours(name, bundle, teacher.bundle, layers), references, pictures, bar.update
            )
        for name in peer_names:
            with theirs(name, teacher.bundle, layers) as candidate:
                entries["peers"][name] = compare(candidate, references, pictures, bar.update)
    successes = [known.run.success for known in references]
    return {
        "what": "fidelity",
        "model": teacher.bundle.name,
        "reference": {
            "name": reference.name,
            "success": round(sum(successes) / len(successes), 4),
            "success_each": successes,
        },
        "steps": steps,
        "edits": len(references),
        "kinds": [known.edit.kind for known in references],
        "seed": seed,
        **entries,
        "absent_measures": absent,
        "machine": describe(),
    }


def open_bundles(reference: Bundle, paths: Sequence[Path]) -> dict[str, Bundle]:
    """By the names of their folders."""
    opened: dict[str, Bundle] = {}
    for path in paths:
        bundle = Bundle.open(path)
        if bundle.manifest["model"] != reference.manifest["model"]:
            raise KontextError(f"{path} is not an export of {reference.folder}'s model")
        if path.name in opened or path.name in peers.PEERS:
            raise KontextError(f"two bundles are called {path.name}: rename the folder of one")
        opened[path.name] = bundle
    return opened


def ours(name: str, bundle: Bundle, reference: Bundle, layers: bits.Layers) -> Candidate:
    return Candidate(
        name,
        {
            "precision": bundle.manifest["precision"]["weights"],
            "activations": bits.activation_formats(bundle),
        },
        Pipeline.load(bundle),
        bits.layer_bits(bundle, reference, layers),
        bits.file_bits(bundle, reference),
    )


@contextlib.contextmanager
def theirs(name: str, reference: Bundle, layers: bits.Layers) -> Iterator[Candidate]:
    with peers.quantized(name, reference, layers) as quantized:
        yield Candidate(
            name,
            peers.describe(name),
            Pipeline.load(quantized.bundle),
            quantized.layer_bits(),
            quantized.file_bits(reference),
        )
