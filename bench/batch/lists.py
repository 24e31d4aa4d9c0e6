"""Lists of jobs for `kontext-batch`, of the embedded model's held-out edits, and one run of a list."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ...batch import cli
from ...batch.jobs import Job
from ...batch.run import Edits, Progress, run_jobs
from ...errors import KontextError
from ...temporary_folder import temporary_folder
from ...tiny.scenes import render
from ..edits import held_out


@dataclass(frozen=True)
class Settings:
    """What all edits of a benchmark have in common."""

    bundle: Path
    edits: int
    """Of a list."""
    steps: int
    """Of an edit."""
    size: tuple[int, int]
    """(width, height) of the outputs, and of the references."""
    seed: int
    """Of the scenes, and of the first edit's noise."""


def write_list(folder: Path, settings: Settings, *, same: bool) -> Path:
    """Writes pictures and a list of jobs into `folder`, and returns the list's path.

    Args:
        folder: a new one; it is made.
        settings: of the edits.
        same: give all edits one prompt and one picture; else each has its own, other than those of lists with
            another seed. The seeds of the noise differ in any case.
    """
    folder.mkdir()
    rows = []
    width, height = settings.size
    for number, edit in enumerate(held_out("recolour", settings.edits, settings.seed)):
        name = f"{0 if same else number:06}.png"
        if not (folder / name).exists():
            assert edit.source is not None  # a recolouring has a source
            picture = PIL.Image.fromarray(render(edit.source)).resize(
                settings.size, PIL.Image.Resampling.LANCZOS
            )
            picture.save(folder / name)
            prompt = edit.prompt if same else f"{settings.seed}.{number}: {edit.prompt}"
        rows.append(
            {
                "image": name,
                "prompt": prompt,
                "steps": settings.steps,
                "size": f"{width}x{height}",
                "seed": settings.seed + number,
            }
        )
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command_line(bundle: Path, jobs: Path, flags: Sequence[str] = ()) -> argparse.Namespace:
    """The arguments of `kontext-batch BUNDLE JOBS FLAGS`; each run names its own output."""
    return cli.parser().parse_args(
        [str(bundle), str(jobs), "-o", str(jobs.parent / "out"), "--quiet", *flags]
    )


def run_list(edits: Edits, jobs: Sequence[Job]) -> float:
    """Seconds of a whole run: from the first picture's file to the last result's line on the disk, in a new folder.

    Raises:
        KontextError: an edit failed; a measurement with failed edits would be meaningless.
    """
    progress = Progress(len(jobs), show=False)
    with temporary_folder("batch") as name:
        begin = time.perf_counter()
        run_jobs(edits, jobs, Path(name) / "out", progress, retry=False, metadata=True)
        seconds = time.perf_counter() - begin
    if progress.failed:
        raise KontextError(f"an edit failed: {progress.failed[0]}")
    return seconds
