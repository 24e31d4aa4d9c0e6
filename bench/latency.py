"""Latency of an edit by stage and step, beside diffusers on the same weights if requested.

The stages are the bundle's graphs; `step` is one run of the transformer, `edit` everything from picture to picture.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..decibels import psnr
from ..runtime import Pipeline
from ..runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from ..temporary_folder import temporary_folder
from . import diffusers_peer
from .coldstart import edit_commands
from .flags import add_edit_flags, at_least, edit_settings
from .inputs import output_size, picture_and_prompt
from .machine import describe_machine, machine_line
from .process_cost import run_process
from .report import Table, finish, mebibytes, milliseconds, ratio
from .timing import Percentiles, StageTimer, interleave

STAGES = ("text_encoder", "text_encoder_2", "vae_encoder", "modulation", "step", "vae_decoder", "edit")
OURS, THEIRS = "kontext", "diffusers"
SAMPLE_SECONDS = 0.01
"""Between two readings of a process's memory."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--against", choices=[THEIRS], help="also measure this library, on the same weights")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "rtx", "tensorrt"], help="(cpu)")
    parser.add_argument("--warmup", type=int, default=2, help="edits per side before timing starts (2)")
    add_edit_flags(parser, steps=28, repeat=10)


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, warmup=0)
    result = measure_latency(
        arguments.bundle,
        checkpoint=arguments.checkpoint if arguments.against else None,
        device=arguments.device,
        warmup=arguments.warmup,
        **edit_settings(arguments),
    )
    finish(result, tables(result), footer(result), arguments.json)


def measure_latency(
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
    """Times `repeat` edits after `warmup`; beside diffusers on the folder `checkpoint`, unless that is None.

    `size`, `image` and `prompt` are as in `measure_coldstart`.
    """
    chosen = output_size(bundle, size)
    picture, words = picture_and_prompt(image, prompt, chosen)
    settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed, "size": chosen}
    timers = {OURS: StageTimer()}
    pipe = Pipeline.load(bundle, device=device, embedding_cache=0)
    pipe.backend = TimedBackend(pipe.backend, timers[OURS])
    edits: dict[str, Callable[[], Any]] = {OURS: partial(pipe.edit, picture, words, **settings)}
    if checkpoint is not None:
        timers[THEIRS] = StageTimer()
        peer = diffusers_peer.load_pipeline(checkpoint, device="cpu" if device == "cpu" else "cuda")
        diffusers_peer.attach_timer(peer, timers[THEIRS])
        edits[THEIRS] = partial(diffusers_peer.edit, peer, picture, words, **settings)
    sides = {name: partial(timed_edit, edit, timers[name]) for name, edit in edits.items()}
    with tqdm(total=len(sides) * (warmup + repeat), desc="edits", unit="edit", disable=not progress) as bar:
        runs = interleave(sides, repeat, warmup=warmup, done=bar.update)
    with temporary_folder("latency") as folder:
        commands = edit_commands(bundle, checkpoint, Path(folder), picture, words, device=device, **settings)
        costs = [run_process(each, sample_seconds=SAMPLE_SECONDS) for each in commands.values()]
    result: dict[str, Any] = {
        "what": "latency",
        "model": pipe.bundle.manifest["model"]["name"],
        "precision": pipe.bundle.manifest["precision"]["compute"],
        "device": device,
        **settings,
        "sides": {name: summarize([stages for stages, _ in each]) for name, each in runs.items()},
        "peak_bytes": {name: cost.peak_bytes for name, cost in zip(runs, costs, strict=True)},
        "memory": {name: cost.memory for name, cost in zip(runs, costs, strict=True)},
        "machine": describe_machine(),
    }
    if checkpoint is not None:
        result["psnr_db"] = round(psnr(runs[OURS][-1][1], runs[THEIRS][-1][1]), 2)
    return result


class TimedBackend(ForwardingBackend):
    """Times each run of a graph as a stage."""

    def __init__(self, backend: Backend, timer: StageTimer) -> None:
        super().__init__(backend)
        self.timer = timer

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        with self.timer.stage(graph if step is None else "step"):
            return super().run(graph, inputs, step)


def timed_edit(edit: Callable[[], Any], timer: StageTimer) -> tuple[dict[str, list[float]], Any]:
    """(seconds of each stage, the picture)."""
    timer.stages = {}
    with timer.stage("edit"):
        picture = edit()
    return timer.stages, picture


def summarize(runs: list[dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Stage → median and p95 over all runs, `step` over all steps of all runs; a sample is a run's median, since steps
    of one edit are not independent."""
    pooled: dict[str, list[list[float]]] = {}
    for stages in runs:
        for stage, seconds in stages.items():
            pooled.setdefault(stage, []).append(seconds)
    return {stage: percentiles_of_runs(pooled[stage]).to_json() for stage in STAGES if stage in pooled}


def percentiles_of_runs(runs: Sequence[Sequence[float]]) -> Percentiles:
    """Of all values of all runs, with a sample for each run."""
    return Percentiles.of(list(chain.from_iterable(runs)), [statistics.median(run) for run in runs])


def tables(result: dict[str, Any]) -> list[Table]:
    """One row per stage; the ratio is diffusers' median over ours, a dash where it has no such stage."""
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
        f"{machine_line(result['machine'])}"
    )
