"""Cold start: `kontext-edit`, process start to PNG, beside a script that does the same edit with diffusers.

Whole processes in turn (A B A B …), each measured by the kernel: wall time, and peak resident memory.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm import tqdm

from ..decibels import psnr
from .inputs import command, picture_and_prompt, sizes
from .machine import describe, one_line
from .measure import ProcessCost, Summary, interleave, run_process
from .report import Table, mebibytes, ratio

OURS, THEIRS = "kontext-edit", "diffusers"
IMPORT = {"nothing": "pass", "kontext.runtime": "from kontext.runtime import Pipeline"}


def measure(
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
    progress: bool = False,
) -> dict[str, Any]:
    """Costs of both sides over `repeat` rounds, after one that fills the page cache."""
    output_size, reference_size = sizes(bundle, size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed, "size": output_size}
        commands = edit_commands(
            bundle, checkpoint, folder, *picture_and_prompt(image, prompt, reference_size), **settings
        )
        sides = {side: partial(run_process, words) for side, words in commands.items()}
        with tqdm(total=2 * (repeat + 1), desc="cold starts", unit="process", disable=not progress) as bar:
            costs = interleave(sides, repeat, warmup=1, done=bar.update)
        likeness = psnr(*(PIL.Image.open(folder / f"{side}.png") for side in (OURS, THEIRS)))
    imports = {name: [sys.executable, "-c", code] for name, code in IMPORT.items()}
    starts = {name: partial(run_process, words) for name, words in imports.items()}
    import_costs = interleave(starts, max(repeat, 5), warmup=1)
    return {
        "what": "cold start",
        "steps": steps,
        "guidance": guidance,
        "size": list(output_size),
        "sides": {side: summarize(each) for side, each in costs.items()},
        "imports": {side: summarize(each) for side, each in import_costs.items()},
        "psnr_db": round(likeness, 2),
        "machine": describe(),
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
) -> dict[str, list[str]]:
    """The command lines of one edit on each side; each writes its picture to `folder/SIDE.png`."""
    picture.save(folder / "in.png")
    same = ["--image", str(folder / "in.png"), "--prompt", prompt, "--steps", str(steps)]
    same += [
        "--guidance",
        str(guidance),
        "--seed",
        str(seed),
        "--size",
        f"{size[0]}x{size[1]}",
        "--device",
        device,
    ]
    ours = [*command("kontext-edit", "kontext.runtime.cli"), str(bundle), *same]
    commands = {OURS: [*ours, "--output", str(folder / f"{OURS}.png")]}
    if checkpoint is not None:
        theirs = [sys.executable, "-m", "kontext.bench.diffusers_edit", str(checkpoint), *same]
        commands[THEIRS] = [*theirs, "--output", str(folder / f"{THEIRS}.png")]
    return commands


def summarize(costs: list[ProcessCost]) -> dict[str, Any]:
    return {
        "seconds": Summary.of([cost.seconds for cost in costs]).to_json(),
        "peak_bytes": Summary.of([float(cost.peak_bytes) for cost in costs]).to_json(),
    }


def import_seconds(result: dict[str, Any]) -> float:
    """Median of importing the runtime, less that of starting Python and importing nothing."""
    imports = result["imports"]
    return imports["kontext.runtime"]["seconds"]["median"] - imports["nothing"]["seconds"]["median"]


def tables(result: dict[str, Any]) -> list[Table]:
    ours, theirs = (result["sides"][side] for side in (OURS, THEIRS))
    rows = []
    for label, key, scale, unit in (
        ("wall time", "seconds", 1.0, "s"),
        ("peak memory", "peak_bytes", 2**20, "MiB"),
    ):
        values = [side[key][kind] / scale for side in (ours, theirs) for kind in ("median", "p95")]
        digits = 2 if unit == "s" else 0
        shown = [f"{value:.{digits}f}" for value in values]
        rows.append([f"{label} [{unit}]", *shown, ratio(ours[key]["median"], theirs[key]["median"])])
    header = ["cold start", OURS, "p95", THEIRS, "p95", "ratio"]
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    runtime = result["imports"]["kontext.runtime"]["peak_bytes"]["median"]
    return (
        f"{result['steps']} steps at {width}x{height}, fp32, {count(result)} processes each, in turn; the "
        f"two pictures agree to {result['psnr_db']} dB. `from kontext.runtime import Pipeline` takes "
        f"{import_seconds(result):.2f} s and {mebibytes(runtime)} MiB, Python's own included.\n"
        f"{one_line(result['machine'])}"
    )


def count(result: dict[str, Any]) -> int:
    return int(result["sides"][OURS]["seconds"]["count"])
