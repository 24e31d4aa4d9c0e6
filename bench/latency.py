"""Latency of an edit, stage by stage and step by step, with diffusers in turn on the same weights if asked.

The stages are the bundle's graphs; `step` is one run of the transformer, `edit` all from picture to picture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..decibels import psnr
from ..runtime import Pipeline
from ..runtime.pipeline import Backend
from . import reference
from .coldstart import edit_commands
from .inputs import picture_and_prompt, sizes
from .machine import describe, one_line
from .measure import Clock, Summary, interleave, run_process
from .report import Table, mebibytes, milliseconds, ratio

STAGES = ("text_encoder", "text_encoder_2", "vae_encoder", "modulation", "step", "vae_decoder", "edit")
OURS, THEIRS = "kontext", "diffusers"


def measure(
    bundle: Path,
    *,
    checkpoint: Path | None,
    device: str,
    steps: int,
    guidance: float,
    seed: int,
    size: tuple[int, int] | None,
    repeat: int,
    warmup: int,
    image: Path | None = None,
    prompt: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Times `repeat` edits after `warmup`; beside diffusers on `checkpoint` unless that is None."""
    output_size, reference_size = sizes(bundle, size)
    picture, words = picture_and_prompt(image, prompt, reference_size)
    settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed, "size": output_size}
    clocks = {OURS: Clock()}
    pipe = Pipeline.load(bundle, device=device)
    pipe.backend = TimedBackend(pipe.backend, clocks[OURS])
    edits: dict[str, Callable[[], Any]] = {OURS: partial(pipe.edit, picture, words, **settings)}
    if checkpoint is not None:
        clocks[THEIRS] = Clock()
        peer = reference.load_reference(checkpoint, device="cpu" if device == "cpu" else "cuda")
        reference.attach_clock(peer, clocks[THEIRS])
        edits[THEIRS] = partial(reference.edit, peer, picture, words, **settings)
    sides = {name: partial(timed_edit, edit, clocks[name]) for name, edit in edits.items()}
    with tqdm(total=len(sides) * (warmup + repeat), desc="edits", unit="edit", disable=not progress) as bar:
        runs = interleave(sides, repeat, warmup=warmup, done=bar.update)
    with tempfile.TemporaryDirectory() as folder:
        commands = edit_commands(bundle, checkpoint, Path(folder), picture, words, device=device, **settings)
        peaks = [run_process(each).peak_bytes for each in commands.values()]
    result: dict[str, Any] = {
        "what": "latency",
        "model": pipe.bundle.manifest["model"]["name"],
        "precision": pipe.bundle.manifest["precision"]["compute"],
        "device": device,
        **settings,
        "sides": {name: summarize([stages for stages, _ in each]) for name, each in runs.items()},
        "peak_bytes": dict(zip(runs, peaks, strict=True)),
        "machine": describe(),
    }
    if checkpoint is not None:
        result["psnr_db"] = round(psnr(runs[OURS][-1][1], runs[THEIRS][-1][1]), 2)
    return result


class TimedBackend:
    """Passes everything on to `backend` and times each run of a graph as a stage."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self.backend, self.clock = backend, clock

    def hold(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return self.backend.hold(arrays)

    def run(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        with self.clock.stage("step" if graph == "transformer" else graph):
            return self.backend.run(graph, inputs)

    def release(self, *graphs: str) -> None:
        self.backend.release(*graphs)


def timed_edit(edit: Callable[[], Any], clock: Clock) -> tuple[dict[str, list[float]], Any]:
    clock.stages = {}
    with clock.stage("edit"):
        picture = edit()
    return clock.stages, picture


def summarize(runs: list[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Each stage over all runs; `step` over all steps of all runs."""
    pooled: dict[str, list[float]] = {}
    for stages in runs:
        for stage, seconds in stages.items():
            pooled.setdefault(stage, []).extend(seconds)
    return {stage: Summary.of(pooled[stage]).to_json() for stage in STAGES if stage in pooled}


def tables(result: dict[str, Any]) -> list[Table]:
    """One row a stage; the ratio is the peer's median by ours, a dash where it has no such stage."""
    sides = result["sides"]
    header = ["[ms]", *(title for side in sides for title in (side, "p95"))]
    rows = []
    for stage in STAGES:
        if all(stage not in side for side in sides.values()):
            continue
        row = [stage]
        for side in sides.values():
            row += [milliseconds(side[stage][kind]) if stage in side else "-" for kind in ("median", "p95")]
        rows.append(row)
    peaks = [text for peak in result["peak_bytes"].values() for text in (mebibytes(peak), "")]
    rows.append(["peak memory [MiB]", *peaks])
    if THEIRS in sides:
        header.append("ratio")
        for row in rows[:-1]:
            both = all(row[0] in side for side in sides.values())
            row.append(ratio(*(sides[side][row[0]]["median"] for side in (OURS, THEIRS))) if both else "-")
        rows[-1].append(ratio(*(result["peak_bytes"][side] for side in (OURS, THEIRS))))
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    count = result["sides"][OURS]["edit"]["count"]
    in_turn = ", in turn" if THEIRS in result["sides"] else ""
    agreement = f"; the two pictures agree to {result['psnr_db']} dB" if "psnr_db" in result else ""
    return (
        f"{result['model']}, {result['precision']}, {result['device']}, {result['steps']} steps "
        f"at {width}x{height}, {count} edits a side{in_turn}{agreement}. Peak memory is a whole process's. "
        f"diffusers computes the modulation inside every step.\n"
        f"{one_line(result['machine'])}"
    )
