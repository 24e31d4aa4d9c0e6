"""Latency of an edit by stage and step, beside other ways to run the same model: our other backends, diffusers eager,
compiled and quantized. All sides take turns in one process.

The stages are the bundle's graphs; `step` is one run of the transformer, `edit` everything from picture to picture.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..decibels import psnr
from ..runtime import Pipeline
from ..runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from ..temporary_folder import temporary_folder
from .energy import EnergyMeter
from .flags import add_edit_flags, at_least, edit_settings
from .inputs import output_size, picture_and_prompt
from .machine import describe_machine, machine_line
from .number_formats import formats_line, formats_of
from .process_cost import ProcessCost, edit_command, run_process
from .report import Table, finish, mebibytes, milliseconds, ratio
from .sides import DIFFUSERS, SIDES, Side, command, edit_flags, parse_sides, prepare
from .timing import Percentiles, StageTimer, interleave

STAGES = ("text_encoder", "text_encoder_2", "vae_encoder", "modulation", "step", "vae_decoder", "edit")
OURS = "kontext"
SAMPLE_SECONDS = 0.01
"""Between two readings of a process's memory."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--against", metavar="NAME,…", help=f"also measure these, on the same weights: {', '.join(SIDES)}"
    )
    parser.add_argument(
        "--quantized",
        type=Path,
        action="append",
        default=[],
        metavar="BUNDLE",
        help="also OpenVINO in bf16 on this bundle; repeatable",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "rtx", "tensorrt"], help="(cpu)")
    parser.add_argument("--warmup", type=int, default=2, help="edits per side before timing starts (2)")
    add_edit_flags(parser, steps=28, repeat=10)


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, warmup=0)
    result = measure_latency(
        arguments.bundle,
        arguments.checkpoint,
        against=parse_sides(arguments.against),
        quantized=arguments.quantized,
        device=arguments.device,
        warmup=arguments.warmup,
        **edit_settings(arguments),
    )
    finish(result, tables(result), footer(result), arguments.json)


def measure_latency(
    bundle: Path,
    checkpoint: Path,
    *,
    against: Sequence[str] = (),
    quantized: Sequence[Path] = (),
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
    """Times `repeat` edits of every side after `warmup`.

    Args:
        bundle: what our backends run.
        checkpoint: the diffusers folder that it was exported from, for the sides of diffusers.
        against: names of `SIDES`.
        quantized: further bundles of the same model, for OpenVINO in bf16.
        device: of our own side, as the runtime names it.
        steps, guidance, seed, size, image, prompt: as in `coldstart.measure_coldstart`.
        repeat, warmup: edits of each side.
        progress: show a bar.
    """
    chosen = output_size(bundle, size)
    picture, words = picture_and_prompt(image, prompt, chosen)
    settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed, "size": chosen}
    peers = {
        name: (SIDES[name], checkpoint if SIDES[name].backend == DIFFUSERS else bundle) for name in against
    }
    peers |= {f"openvino-bf16 {each.name}": (SIDES["openvino-bf16"], each) for each in quantized}
    others = "cpu" if device == "cpu" else "cuda"
    timers = {OURS: StageTimer(), **{name: StageTimer() for name in peers}}
    pipe = Pipeline.load(bundle, device=device, embedding_cache=0)
    pipe.backend = TimedBackend(pipe.backend, timers[OURS])
    edits: dict[str, Callable[..., Any]] = {OURS: pipe.edit}
    for name, (side, folder) in peers.items():
        edits[name] = prepare(side, folder, others, timers[name], TimedBackend)
    meter = EnergyMeter.open(device)
    sides = {
        name: partial(timed_edit, partial(edit, picture, words, **settings), timers[name], meter)
        for name, edit in edits.items()
    }
    with tqdm(total=len(sides) * (warmup + repeat), desc="edits", unit="edit", disable=not progress) as bar:
        runs = interleave(sides, repeat, warmup=warmup, done=bar.update)
    costs = process_costs(bundle, peers, device, picture, words, settings)
    last = {name: each[-1].made for name, each in runs.items()}
    return {
        "what": "latency",
        "model": pipe.bundle.manifest["model"]["name"],
        **formats_of(pipe.bundle),
        "device": device,
        **settings,
        "sides": {name: summarize([each.stages for each in runs[name]]) for name in runs},
        "psnr_db": {name: round(psnr(each, last[OURS]), 2) for name, each in last.items() if name != OURS},
        "peak_bytes": {name: cost.peak_bytes for name, cost in costs.items()},
        "memory": {name: cost.memory for name, cost in costs.items()},
        "joules": {name: found for name in runs if (found := energy(runs[name]))},
        "energy_source": meter.source,
        "machine": describe_machine(),
    }


class TimedBackend(ForwardingBackend):
    """Times each run of a graph as a stage."""

    def __init__(self, backend: Backend, timer: StageTimer) -> None:
        super().__init__(backend)
        self.timer = timer

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        with self.timer.stage(graph if step is None else "step"):
            return super().run(graph, inputs, step)


@dataclass(frozen=True)
class Timed:
    """One call: seconds of each stage, what it made, and the joules that it took, if they can be measured."""

    stages: dict[str, list[float]]
    made: Any
    joules: float | None


def timed_edit(edit: Callable[[], Any], timer: StageTimer, meter: EnergyMeter) -> Timed:
    timer.stages = {}
    before = meter.read()
    with timer.stage("edit"):
        made = edit()
    return Timed(timer.stages, made, meter.since(before))


def process_costs(
    bundle: Path,
    peers: Mapping[str, tuple[Side, Path]],
    device: str,
    picture: Image.Image,
    prompt: str,
    settings: dict[str, Any],
) -> dict[str, ProcessCost]:
    """Side → what a process costs that loads it and makes one edit."""
    with temporary_folder("latency") as name:
        folder = Path(name)
        flags = [*edit_flags(folder, picture, prompt, settings), "--output", str(folder / "out.png")]
        commands = {OURS: [*edit_command(), str(bundle), *flags, "--device", device]}
        others = "cpu" if device == "cpu" else "cuda"
        commands |= {name: command(side, model, others, flags) for name, (side, model) in peers.items()}
        return {name: run_process(words, sample_seconds=SAMPLE_SECONDS) for name, words in commands.items()}


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


def energy(runs: Sequence[Timed]) -> dict[str, Any] | None:
    """Joules of an edit; None if they were not measured."""
    joules = [each.joules for each in runs if each.joules is not None]
    return Percentiles.of(joules).to_json() if joules else None


def tables(result: dict[str, Any]) -> list[Table]:
    """A row for each side: medians of the stages, and the speed of an edit beside eager diffusers', or our own."""
    sides: dict[str, dict[str, Any]] = result["sides"]
    stages = [stage for stage in STAGES if any(stage in side for side in sides.values())]
    base = DIFFUSERS if DIFFUSERS in sides else OURS
    header = ["[ms]"]
    for stage in stages:
        header += [stage, "p95"] if stage in ("step", "edit") else [stage]
    header += [
        f"speed, {base} = 1",
        "PSNR to ours [dB]",
        "peak [MiB]",
        *(["energy [J]"] if result["joules"] else []),
    ]
    rows = []
    for name, side in sides.items():
        row = [name]
        for stage in stages:
            for kind in ("median", "p95") if stage in ("step", "edit") else ("median",):
                row.append(milliseconds(side[stage][kind]) if stage in side else "-")
        row.append(ratio(*(sides[each]["edit"]["median"] for each in (name, base))))
        row.append(f"{result['psnr_db'][name]:.1f}" if name in result["psnr_db"] else "-")
        row.append(mebibytes(result["peak_bytes"][name]))
        row += [f"{result['joules'][name]['median']:.1f}"] if name in result["joules"] else []
        rows.append(row)
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    count = result["sides"][OURS]["edit"]["count"]
    several = len(result["sides"]) > 1
    source = result["energy_source"]
    energy = f" Energy is {source}'s." if source else " Energy: not measured (no readable counter)."
    return (
        f"{result['model']}, {formats_line(result)}, {result['device']}, {result['steps']} steps "
        f"at {width}x{height}, {count} edits{' a side, in turn' if several else ''}, warm. Peak memory is a whole "
        f"process's.{' diffusers computes the modulation inside every step.' if several else ''}{energy}\n"
        f"{machine_line(result['machine'])}"
    )
