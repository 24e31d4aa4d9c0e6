"""Edits a second against the batch: several prompts in one call, all batches in turn; and what a step reaches of this
processor's limits, its rate of matrix products and its bandwidth.

Work is computed from shapes: two operations for each weight of a block and token, and those of attention. What a step
must read is the transformer's weights, once for the whole batch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..runtime import Pipeline
from .energy import EnergyMeter
from .flags import add_seed_flag, at_least, parse_counts
from .inputs import output_size, picture_and_prompt
from .latency import TimedBackend, energy, percentiles_of_runs, timed_edit
from .limits import copy_bandwidth, matrix_rates, step_flops
from .machine import describe_machine, machine_line
from .number_formats import formats_line, formats_of
from .report import Table, finish, milliseconds
from .timing import StageTimer, interleave

SIZES = (768, 1536, 3072)
"""Rows of the square matrices whose products give the processor's rate."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--batches", default="1,2,4,8", metavar="N,…", help="edits in a call, a row for each (1,2,4,8)"
    )
    parser.add_argument("--device", default="cpu", help="as kontext-edit takes it (cpu)")
    parser.add_argument("--steps", type=int, default=28, help="sampler steps (28)")
    parser.add_argument("--repeat", type=int, default=5, help="measured calls of each batch (5)")
    parser.add_argument("--warmup", type=int, default=1, help="calls of each batch before timing starts (1)")
    add_seed_flag(parser, "seed of the noise (0)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, steps=1, repeat=1, warmup=0)
    result = measure_throughput(
        arguments.bundle,
        parse_counts(arguments.batches, "--batches"),
        device=arguments.device,
        steps=arguments.steps,
        repeat=arguments.repeat,
        warmup=arguments.warmup,
        seed=arguments.seed,
        progress=sys.stderr.isatty(),
    )
    finish(result, tables(result), footer(result), arguments.json)


def measure_throughput(
    bundle: Path,
    batches: Sequence[int],
    *,
    device: str,
    steps: int,
    repeat: int,
    warmup: int,
    seed: int,
    progress: bool = False,
) -> dict[str, Any]:
    """Times `repeat` calls of each batch after `warmup`, of one picture and prompt in the bundle's own size."""
    size = output_size(bundle, None)
    picture, prompt = picture_and_prompt(None, None, size)
    timer, meter = StageTimer(), EnergyMeter.open(device)
    pipe = Pipeline.load(bundle, device=device, embedding_cache=0)
    pipe.backend = TimedBackend(pipe.backend, timer)

    def edits(count: int) -> object:
        return pipe.edit([picture] * count, [prompt] * count, steps=steps, size=size, seed=[seed] * count)

    sides = {
        str(count): partial(timed_edit, partial(edits, count), timer, meter)
        for count in dict.fromkeys(batches)
    }
    with tqdm(total=len(sides) * (warmup + repeat), desc="calls", disable=not progress) as bar:
        runs = interleave(sides, repeat, warmup=warmup, done=bar.update)
    on_processor = device in ("cpu", "openvino")
    return {
        "what": "throughput",
        "model": pipe.bundle.name,
        **formats_of(pipe.bundle),
        "device": device,
        "steps": steps,
        "size": list(size),
        "seed": seed,
        "batches": {
            count: {
                **{
                    stage: percentiles_of_runs([each.stages[stage] for each in runs[count]]).to_json()
                    for stage in ("step", "edit")
                },
                "joules": energy(runs[count]),
            }
            for count in sides
        },
        "step_flops": step_flops(pipe.bundle, *size),
        "weight_bytes": pipe.bundle.graphs["transformer"].weights.stat().st_size,
        "matrix_rates": matrix_rates(SIZES) if on_processor else None,
        "copy_bandwidth": copy_bandwidth() if on_processor else None,
        "energy_source": meter.source,
        "machine": describe_machine(),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """A row for each batch."""
    limits, energy_shown = result["matrix_rates"], result["energy_source"] is not None
    header = ["edits in a call", "step [ms]", "p95", "call [ms]", "p95", "edits/s", "beside one"]
    header += [
        "GFLOP/s",
        *(["of the fp32 products' rate", "weights read, of a copy's bandwidth"] if limits else []),
    ]
    header += ["energy of an edit [J]"] if energy_shown else []
    first = next(iter(result["batches"]))
    one = int(first) / result["batches"][first]["edit"]["median"]
    rows = []
    for count, entry in result["batches"].items():
        step, rate = entry["step"]["median"], int(count) / entry["edit"]["median"]
        flops = int(count) * result["step_flops"] / step
        row = [
            count,
            *(milliseconds(entry[stage][kind]) for stage in ("step", "edit") for kind in ("median", "p95")),
        ]
        row += [f"{rate:.2f}", f"{rate / one:.2f}x", f"{flops / 1e9:.0f}"]
        if limits:
            read = result["weight_bytes"] / step
            row += [f"{flops / limits['fp32']:.0%}", f"{read / result['copy_bandwidth']:.0%}"]
        if energy_shown:
            row.append(f"{entry['joules']['median'] / int(count):.1f}")
        rows.append(row)
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    count = next(iter(result["batches"].values()))["edit"]["count"]
    limits = ""
    if result["matrix_rates"]:
        rates = " and ".join(
            f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in result["matrix_rates"].items()
        )
        limits = (
            f" The fastest products of square matrices ran at {rates} here, a copy at "
            f"{result['copy_bandwidth'] / 1e9:.1f} GB/s."
        )
    return (
        f"{result['model']}, {formats_line(result)}, {result['device']}, {result['steps']} steps at "
        f"{width}x{height}, one reference, {count} calls of each, in turn, warm. A step of one edit takes "
        f"{result['step_flops'] / 1e9:.2f} GFLOP.{limits}\n{machine_line(result['machine'])}"
    )
