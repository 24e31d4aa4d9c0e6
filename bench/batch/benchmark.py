"""What `kontext-batch` costs beside the bare step, what its cache saves, and how it scales over workers of Ray.

A list of edits runs as the command runs it, from the first picture's file to the last line of the results; the networks
are loaded before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...runtime.cli import parse_width_height
from ..flags import add_seed_flag, at_least
from ..inputs import output_size
from ..machine import describe_machine, machine_line, usable_cores
from ..number_formats import formats_line, formats_of
from ..report import Table, finish
from .lists import Settings
from .scaling import LOCAL, measure_scaling, obstacle
from .speed import BARE, JOB, SEQUENCE, STAGES, load_pipeline, measure_speed

LEFT_OUT = "--no-ray"

MOST_EDITS = 10_000


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("-n", "--edits", type=int, default=24, help="edits in the list (24)")
    parser.add_argument("--steps", type=int, default=28, help="sampler steps of each edit (28)")
    parser.add_argument("--batch-size", type=int, default=1, help="edits to sample together (1)")
    parser.add_argument(
        "--size",
        type=parse_width_height,
        metavar="WxH",
        help="output size (the most square of the bundle's preferred sizes)",
    )
    add_seed_flag(parser, "seed of the scenes and of the noise (0)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "rtx", "tensorrt"], help="(cpu)")
    parser.add_argument(
        "--threads", type=int, help="of ONNX Runtime on a CPU, for all but the workers (all cores)"
    )
    parser.add_argument("--repeat", type=int, default=5, help="measured runs of each side (5)")
    parser.add_argument(
        LEFT_OUT, dest="ray", action="store_false", help="leave out the workers of Ray, which run on the CPU"
    )


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, edits=1, steps=1, repeat=1, batch_size=1)
    if arguments.edits > MOST_EDITS:
        raise KontextError(f"--edits may be at most {MOST_EDITS}, not {arguments.edits}")
    if arguments.edits % arguments.batch_size:
        raise KontextError(
            f"--edits must be a multiple of --batch-size, {arguments.batch_size}, not {arguments.edits}"
        )
    if arguments.threads is not None and arguments.device != "cpu":
        raise KontextError("--threads needs --device cpu")
    settings = Settings(
        arguments.bundle,
        arguments.edits,
        arguments.steps,
        output_size(arguments.bundle, arguments.size),
        arguments.seed,
    )
    result = measure_batch(
        settings,
        batch_size=arguments.batch_size,
        device=arguments.device,
        threads=arguments.threads,
        repeat=arguments.repeat,
        ray=arguments.ray,
        progress=sys.stderr.isatty(),
    )
    finish(result, tables(result), footer(result), arguments.json)


def measure_batch(
    settings: Settings,
    *,
    batch_size: int,
    device: str,
    threads: int | None,
    repeat: int,
    ray: bool,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures one list on all sides.

    Args:
        settings: of its edits.
        batch_size: edits that are sampled together.
        device: of `Pipeline.load`; workers of Ray run on the CPU.
        threads: of ONNX Runtime on a CPU; None: all cores. Workers have one each.
        repeat: measured runs of each side.
        ray: also measure workers of Ray, if it is installed.
        progress: show bars.
    """
    pipe = load_pipeline(settings, device, threads)
    sides = measure_speed(pipe, settings, batch_size=batch_size, repeat=repeat, progress=progress)
    reason = obstacle() if ray else f"left out by {LEFT_OUT}"
    scaling: dict[str, Any] = {"skipped": reason}
    if not reason:
        scaling = measure_scaling(settings, batch_size=batch_size, repeat=repeat, progress=progress)
    return {
        "what": "batch",
        "model": pipe.bundle.manifest["model"]["name"],
        **formats_of(pipe.bundle),
        "device": device,
        "threads": (threads or usable_cores()) if device == "cpu" else None,
        "edits": settings.edits,
        "steps": settings.steps,
        "size": list(settings.size),
        "batch_size": batch_size,
        "repeat": repeat,
        "sides": sides,
        "scaling": scaling,
        "machine": describe_machine(),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Speed by side; where an edit's time goes, by stage; and, if they were measured, workers."""
    found = [speed_table(result), stage_table(result)]
    return found if "skipped" in result["scaling"] else [*found, scaling_table(result)]


def speed_table(result: dict[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{side['steps_per_second']['median']:.1f}",
            extremes(side["steps_per_second"], 1),
            f"{side['edits_per_second']['median']:.2f}",
            f"{side['of_bare_step']['median']:.3f}",
            extremes(side["of_bare_step"], 3),
        ]
        for name, side in result["sides"].items()
    ]
    rows[0][3] = "-"  # bare steps make no edit
    return Table(["side", "steps/s", "of all runs", "edits/s", "of the bare step", "of all runs"], rows)


def stage_table(result: dict[str, Any]) -> Table:
    """Milliseconds of an edit; what is not measured on its own is the rest."""
    sides = [result["sides"][name] for name in (BARE, SEQUENCE, JOB)]
    stages = [stage for stage in STAGES if any(stage in side["seconds"] for side in sides)]
    rows = [[stage, *(cell(side["seconds"].get(stage), side) for side in sides)] for stage in stages]
    rests = [side["seconds_of_edit"] - sum(side["seconds"].values()) for side in sides]
    rows.append(["rest", *(cell(rest, side) for rest, side in zip(rests, sides, strict=True))])
    rows.append(["edit", *(cell(side["seconds_of_edit"], side) for side in sides)])
    return Table(["of an edit [ms]", BARE, SEQUENCE, JOB], rows)


def cell(seconds: float | None, side: dict[str, Any]) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ({seconds / side['seconds_of_edit']:.0%})"


def scaling_table(result: dict[str, Any]) -> Table:
    rows = []
    for name, side in result["scaling"]["sides"].items():
        count, speed = side["workers"], side["speed"]
        efficiency = {key: speed[key] / count for key in ("median", "least", "most")}
        rows.append(
            [
                name,
                f"{side['edits_per_second']['median']:.2f}",
                f"{speed['median']:.2f}x",
                "-" if name == LOCAL else f"{efficiency['median']:.2f}",
                "-" if name == LOCAL else extremes(efficiency, 2),
            ]
        )
    return Table(["a thread each", "edits/s", "speed", "efficiency", "of all runs"], rows)


def extremes(spread: dict[str, float], digits: int) -> str:
    return f"{spread['least']:.{digits}f} to {spread['most']:.{digits}f}"


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    sides, scaling = result["sides"], result["scaling"]
    saved = sides[JOB]["steps_per_second"]["median"] / sides[SEQUENCE]["steps_per_second"]["median"]
    threads = "" if result["threads"] is None else f", {result['threads']} threads"
    workers = (
        f"Workers of Ray were not measured: {scaling['skipped']}."
        if "skipped" in scaling
        else f"Workers are of Ray on this machine; they start and load in {scaling['loading_seconds']:.0f} s, which do "
        f"not count, and their speed is relative to {LOCAL}."
    )
    return (
        f"{result['model']}, {formats_line(result)}, {result['device']}{threads}, a list of {result['edits']} edits of "
        f"{result['steps']} steps at {width}x{height}, batches of {result['batch_size']}, {result['repeat']} runs of "
        f"each side, in turn; shares are taken round by round. Loading does not count. {SEQUENCE} reads, edits and "
        f"writes one after the other; {JOB} makes {saved:.2f} times its steps. {workers}\n"
        f"{machine_line(result['machine'])}"
    )
