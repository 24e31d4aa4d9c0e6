"""Edits per second of one and two workers of Ray with a thread each, beside one pipeline with a thread in this process.

Workers have started and loaded the networks before the clock runs; how long that takes is told apart.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from ...batch.cli import opened_edits, read_jobs
from ...batch.jobs import Job
from ...batch.ray_cluster import RayEdits
from ...batch.run import LocalEdits
from ...installation import install_command
from ...runtime.backends.options import OnnxRuntimeOptions
from ...temporary_folder import temporary_folder
from ..machine import usable_cores
from ..timing import interleave
from .lists import Settings, command_line, run_list, write_list
from .speed import load_pipeline, spread

LOCAL = "one process"
WORKERS = {"1 worker": 1, "2 workers": 2}


def obstacle() -> str:
    """Why nothing can be measured here, or ""."""
    if importlib.util.find_spec("ray") is None:
        return f"Ray is not installed: {install_command('batch')}"
    most = max(WORKERS.values())
    return f"{most} workers need {most} cores, and there is 1" if usable_cores() < most else ""


def measure_scaling(
    settings: Settings, *, batch_size: int, repeat: int, progress: bool = False
) -> dict[str, Any]:
    """Runs each side `repeat` times after one round that does not count; returns its figures as JSON values."""
    with temporary_folder("lists") as folder:
        path = write_list(folder / "first", settings, same=False)
        flags = ["--ray", "local", "--workers", str(max(WORKERS.values())), "--batch-size", str(batch_size)]
        arguments = command_line(settings.bundle, path, [*flags, "--device", "cpu"])
        pipe = load_pipeline(settings, "cpu", threads=1)
        began = time.perf_counter()
        with LocalEdits(pipe, batch_size) as local, opened_edits(arguments, OnnxRuntimeOptions()) as cluster:
            assert isinstance(cluster, RayEdits)  # by --ray
            workers = start_workers(cluster, read_jobs(arguments)[:batch_size])
            loading = time.perf_counter() - began

            def run(edits: LocalEdits | RayEdits, count: int) -> float:
                """Of a list that nobody has seen, so that no cache has anything of it."""
                if isinstance(edits, RayEdits):
                    edits.workers = workers[:count]
                unseen = replace(settings, seed=next(seeds))
                return run_list(
                    edits,
                    read_jobs(
                        command_line(
                            settings.bundle, write_list(folder / str(unseen.seed), unseen, same=False)
                        )
                    ),
                )

            seeds = itertools.count(settings.seed + 1)
            sides = {LOCAL: partial(run, local, 1)}
            sides |= {name: partial(run, cluster, count) for name, count in WORKERS.items()}
            with tqdm(
                total=len(sides) * (1 + repeat), desc="workers", unit="list", disable=not progress
            ) as bar:
                runs = interleave(sides, repeat, warmup=1, done=bar.update)
    return {
        "loading_seconds": round(loading, 2),
        "sides": {
            name: {
                "workers": WORKERS.get(name, 1),
                "edits_per_second": spread([settings.edits / seconds for seconds in each]),
                "speed": spread([one / seconds for one, seconds in zip(runs[LOCAL], each, strict=True)]),
            }
            for name, each in runs.items()
        },
    }


def start_workers(cluster: RayEdits, jobs: Sequence[Job]) -> list[Any]:
    """The cluster's workers, once each has made the edits of `jobs`."""
    loaded = [cluster.load(job, lambda _: False) for job in jobs]
    cluster.ray.get([worker.edit.remote(loaded) for worker in cluster.workers])
    return cluster.workers
