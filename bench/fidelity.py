"""How close bundles stay to a reference bundle: the same edits, by seed, at three levels.

(a) The velocity's signal-to-noise ratio in dB along the reference's own trajectory ("teacher forced": every step starts
    from the reference's latents, so errors do not add up and steps can be compared).
(b) The final picture of a free run: PSNR and SSIM, and the latents' distance from the reference's after every step.
(c) The edits that the embedded judge accepts.

A whole trajectory's PSNR alone says little: it mostly measures how fast two runs part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import KontextError
from ..runtime import Pipeline
from ..runtime.bundle import Bundle
from ..tiny.edits import KINDS, Edit
from ..tiny.judge import judge
from ..tiny.scenes import render
from .edits import held_out
from .machine import describe, one_line
from .report import Table

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
    return Run(picture, latents, judge(picture, edit).success)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most 200: what fp32 itself cannot tell from equal."""
    return min(10 * math.log10(signal / noise), 200.0) if noise > 0 else 200.0


def psnr(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return min(decibels(255.0**2, float(np.square(difference).mean())), 100.0)


def ssim(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
    """Structural similarity (Wang et al. 2004), by scikit-image."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(np.asarray(ours), np.asarray(theirs), channel_axis=2, data_range=255))


def bits_per_weight(bundle: Bundle) -> float:
    """Of the transformer and its modulation, scales and low-rank branches included."""
    manifest = bundle.manifest
    names = ("weights/transformer.safetensors", "weights/modulation.safetensors")
    size = sum(manifest["files"][name]["size"] for name in names)
    count = 0
    for name in names:
        with (bundle.folder / name).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for key, entry in header.items():
            if not key.endswith(("_scale", "_down", "_up")):
                packed = 2 if entry["dtype"] == "U8" else 1
                count += packed * math.prod(entry["shape"])
    return 8 * size / count


def measure(
    reference: Path, bundles: Sequence[Path], *, steps: int, count: int, seed: int, progress: bool = False
) -> dict[str, Any]:
    """Runs `count` held-out edits of each kind through the reference and every bundle.

    Raises:
        KontextError: a bundle is not of the reference's model.
    """
    teacher = Pipeline.load(reference)
    pipes = {path.name: Pipeline.load(path) for path in bundles}
    for name, pipe in pipes.items():
        if pipe.bundle.manifest["model"] != teacher.bundle.manifest["model"]:
            raise KontextError(f"{name} is not an export of {reference}'s model")
    edits = [edit for kind in KINDS for edit in held_out(kind, count, seed)]
    noise, signal = (dict.fromkeys(pipes, np.zeros(steps)) for _ in range(2))
    distances = dict.fromkeys(pipes, np.zeros(steps))
    figures: dict[str, dict[str, list[float]]] = {name: {"psnr": [], "ssim": []} for name in pipes}
    successes = dict.fromkeys([reference.name, *pipes], 0)
    with tqdm(total=len(edits), desc="edits", unit="edit", disable=not progress) as bar:
        for number, edit in enumerate(edits):
            recorder = Recorder(teacher.backend)
            teacher.backend = recorder
            expected = free_run(teacher, edit, steps, seed + number)
            teacher.backend = recorder.backend
            successes[reference.name] += expected.success
            energy = np.array([np.square(x, dtype=np.float64).sum() for x in expected.latents])
            for name, pipe in pipes.items():
                found = free_run(pipe, edit, steps, seed + number)
                successes[name] += found.success
                figures[name]["psnr"].append(psnr(found.picture, expected.picture))
                figures[name]["ssim"].append(ssim(found.picture, expected.picture))
                apart = [
                    np.square(x - y, dtype=np.float64).sum()
                    for x, y in zip(found.latents, expected.latents, strict=True)
                ]
                distances[name] = distances[name] + np.sqrt(np.array(apart) / energy) / len(edits)
                forced = TeacherForced(pipe.backend, recorder.trajectory)
                pipe.backend = forced
                free_run(pipe, edit, steps, seed + number)
                pipe.backend = forced.backend
                noise[name] = noise[name] + forced.noise
                signal[name] = signal[name] + forced.signal
            bar.update()
    results = {
        name: {
            "precision": pipe.bundle.manifest["precision"]["weights"],
            "bits_per_weight": round(bits_per_weight(pipe.bundle), 3),
            "velocity_snr": round(decibels(signal[name].sum(), noise[name].sum()), 2),
            "velocity_snr_steps": [
                round(decibels(*pair), 2) for pair in zip(signal[name], noise[name], strict=True)
            ],
            "latent_distance_steps": [round(float(distance), 6) for distance in distances[name]],
            "psnr": round(float(np.mean(figures[name]["psnr"])), 2),
            "psnr_each": [round(value, 2) for value in figures[name]["psnr"]],
            "ssim": round(float(np.mean(figures[name]["ssim"])), 4),
            "lost_edits": round((successes[reference.name] - successes[name]) / len(edits), 4),
        }
        for name, pipe in pipes.items()
    }
    return {
        "what": "fidelity",
        "model": teacher.bundle.name,
        "reference": {"name": reference.name, "success": round(successes[reference.name] / len(edits), 4)},
        "steps": steps,
        "edits": len(edits),
        "seed": seed,
        "bundles": results,
        "machine": describe(),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    rows = [
        [
            name,
            f"{entry['bits_per_weight']:.1f}",
            f"{entry['velocity_snr']:.1f}",
            f"{min(entry['velocity_snr_steps']):.1f}",
            f"{entry['psnr']:.1f}",
            f"{entry['ssim']:.4f}",
            f"{100 * entry['lost_edits']:+.1f}",
        ]
        for name, entry in result["bundles"].items()
    ]
    header = [
        "bundle",
        "bits/weight",
        "velocity SNR [dB]",
        "worst step",
        "PSNR [dB]",
        "SSIM",
        "lost edits [points]",
    ]
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    success = result["reference"]["success"]
    return (
        f"{result['model']}, {result['edits']} held-out edits at {result['steps']} steps against "
        f"{result['reference']['name']}, which succeeds in {success:.0%} of them.\n{one_line(result['machine'])}"
    )
