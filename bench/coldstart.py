"""Cold start: process start to PNG, `kontext-edit` beside a script that makes the same edit with diffusers.

Whole processes in turn (A B A B …): wall time, and the peak of resident memory as the kernel counts it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm import tqdm

from ..child_process import code_command, module_command
from ..decibels import psnr
from ..runtime.bundle import Bundle
from ..runtime.images import open_picture
from ..temporary_folder import temporary_folder
from .flags import add_edit_flags, edit_settings
from .inputs import output_size, picture_and_prompt
from .machine import describe_machine, machine_line
from .process_cost import ProcessCost, edit_command, run_process
from .report import Table, finish, mebibytes, ratio
from .sides import edit_flags
from .timing import Percentiles, interleave

OURS, OPENVINO, THEIRS = "kontext-edit", "kontext-edit, OpenVINO", "diffusers"
IMPORTS = {"nothing": "pass", "kontext.runtime": "from kontext.runtime import Pipeline"}
"""What is imported → the Python code of a process that does nothing else."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_edit_flags(parser, steps=4, repeat=5)
    parser.add_argument("--openvino", action="store_true", help="also kontext-edit --device openvino")


def run(arguments: argparse.Namespace) -> None:
    result = measure_coldstart(
        arguments.bundle, arguments.checkpoint, openvino=arguments.openvino, **edit_settings(arguments)
    )
    finish(result, tables(result), footer(result), arguments.json)


def measure_coldstart(
    bundle: Path,
    checkpoint: Path,
    *,
    steps: int,
    guidance: float,
    seed: int,
    repeat: int,
    size: tuple[int, int] | None,
    image: Path | None = None,
    prompt: str | None = None,
    openvino: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Costs of all sides over `repeat` rounds, after one round that fills the page cache and OpenVINO's own.

    Args:
        bundle: what kontext-edit runs.
        checkpoint: the diffusers folder that the bundle was exported from.
        size: (width, height) of the output; None for the most square of the bundle's preferred sizes.
        image, prompt: what is edited and how; None for a generated scene and its instruction.
        openvino: also run the bundle in OpenVINO.
    """
    chosen = output_size(bundle, size)
    with temporary_folder("coldstart") as name:
        folder = Path(name)
        settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed, "size": chosen}
        scene = picture_and_prompt(image, prompt, chosen)
        commands = edit_commands(bundle, checkpoint, folder, *scene, openvino=openvino, **settings)
        sides = {side: partial(run_process, words) for side, words in commands.items()}
        with tqdm(
            total=len(sides) * (repeat + 1), desc="cold starts", unit="process", disable=not progress
        ) as bar:
            costs = interleave(sides, repeat, warmup=1, done=bar.update)
        likeness = psnr(*(open_picture(folder / f"{side}.png") for side in (OURS, THEIRS)))
    imports = {name: code_command(code) for name, code in IMPORTS.items()}
    starts = {name: partial(run_process, words) for name, words in imports.items()}
    import_costs = interleave(starts, max(repeat, 5), warmup=1)
    return {
        "what": "cold start",
        "model": Bundle.open(bundle).name,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "size": list(chosen),
        "sides": {side: summarize(each) for side, each in costs.items()},
        "imports": {side: summarize(each) for side, each in import_costs.items()},
        "psnr_db": round(likeness, 2),
        "machine": describe_machine(),
    }


def edit_commands(
    bundle: Path,
    checkpoint: Path | None,
    folder: Path,
    picture: PIL.Image.Image,
    prompt: str,
    *,
    steps: int,
    guidance: float,
    seed: int,
    size: tuple[int, int],
    device: str = "cpu",
    openvino: bool = False,
) -> dict[str, list[str]]:
    """Side → the command line of one edit, which writes its picture to `folder/SIDE.png`; `checkpoint` None leaves
    diffusers out."""
    settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed, "size": size}
    same = edit_flags(folder, picture, prompt, settings)

    def command(side: str, program: list[str], model: Path, device: str) -> list[str]:
        return [*program, str(model), *same, "--device", device, "--output", str(folder / f"{side}.png")]

    commands = {OURS: command(OURS, edit_command(), bundle, device)}
    if openvino:
        commands[OPENVINO] = command(OPENVINO, edit_command(), bundle, "openvino")
    if checkpoint is not None:
        script = module_command("kontext.bench.diffusers_edit")
        commands[THEIRS] = command(THEIRS, script, checkpoint, device)
    return commands


def summarize(costs: list[ProcessCost]) -> dict[str, Any]:
    return {
        "seconds": Percentiles.of([cost.seconds for cost in costs]).to_json(),
        "peak_bytes": Percentiles.of([float(cost.peak_bytes) for cost in costs]).to_json(),
    }


def import_seconds(result: dict[str, Any]) -> float:
    """Median time to import the runtime, less that of a process that imports nothing."""
    imports = result["imports"]
    return imports["kontext.runtime"]["seconds"]["median"] - imports["nothing"]["seconds"]["median"]


def tables(result: dict[str, Any]) -> list[Table]:
    theirs = result["sides"][THEIRS]
    header = [
        "cold start",
        "wall time [s]",
        "p95",
        f"against {THEIRS}",
        "peak memory [MiB]",
        f"against {THEIRS}",
    ]
    rows = []
    for name, side in result["sides"].items():
        seconds, memory = side["seconds"], side["peak_bytes"]["median"]
        rows.append(
            [
                name,
                f"{seconds['median']:.2f}",
                f"{seconds['p95']:.2f}",
                ratio(seconds["median"], theirs["seconds"]["median"]),
                mebibytes(memory),
                ratio(memory, theirs["peak_bytes"]["median"]),
            ]
        )
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    runtime = result["imports"]["kontext.runtime"]["peak_bytes"]["median"]
    return (
        f"{result['steps']} steps at {width}x{height}, fp32, {count(result)} processes each, in turn; "
        f"the pictures of the first and the last agree to {result['psnr_db']} dB. "
        "`from kontext.runtime import Pipeline` takes "
        f"{import_seconds(result):.2f} s and {mebibytes(runtime)} MiB, Python's own included.\n"
        f"{machine_line(result['machine'])}"
    )


def count(result: dict[str, Any]) -> int:
    return int(result["sides"][OURS]["seconds"]["count"])
