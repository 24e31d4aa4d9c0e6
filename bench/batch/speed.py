"""Steps per second of a batch job, beside the bare step and the same edits without anything at the same time.

All sides take turns on one pipeline: the same networks, threads and batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...batch.cli import read_jobs
from ...batch.jobs import Job
from ...batch.run import LocalEdits
from ...runtime import OnnxRuntimeOptions, Pipeline
from ...runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from ...runtime.cli import edit_arguments
from ...runtime.embedding_cache import DEFAULT_BYTES, EmbeddingCache
from ...runtime.images import open_picture, save_picture
from ...temporary_folder import temporary_folder
from ..latency import TimedBackend
from ..timing import StageTimer, interleave
from .lists import Settings, command_line, run_list, write_list

BARE, SEQUENCE, JOB = "bare step", "in sequence", "kontext-batch"
SAME, UNCACHED = "one prompt and picture", "one prompt and picture, not cached"

Run = dict[str, list[float]]
"""Stage → seconds of each time that it ran; `run` is the whole."""

STAGES = (
    "read",
    "text_encoder",
    "text_encoder_2",
    "vae_encoder",
    "modulation",
    "step",
    "vae_decoder",
    "write",
)


def load_pipeline(settings: Settings, device: str, threads: int | None) -> Pipeline:
    """A pipeline as `kontext-batch` loads it. Threads are ONNX Runtime's, on a CPU; None: all that there are."""
    if device == "cpu":
        backend = OnnxRuntimeOptions(threads=threads)
        return Pipeline.load(settings.bundle, device=device, backend=backend, low_memory=False)
    return Pipeline.load(settings.bundle, device=device, low_memory=False)


def measure_speed(
    pipe: Pipeline, settings: Settings, *, batch_size: int, repeat: int, progress: bool = False
) -> dict[str, Any]:
    """Runs each side `repeat` times after one round that does not count; returns its figures as JSON values."""
    timer = StageTimer()
    kept = KeepingBackend(pipe.backend)
    pipe.backend = TimedBackend(kept, timer)
    with temporary_folder("lists") as folder, LocalEdits(pipe, batch_size) as edits:
        lists = {name: write_list(folder / name, settings, same=name == "same") for name in ("own", "same")}
        jobs = {name: read_jobs(command_line(settings.bundle, path)) for name, path in lists.items()}
        run_list(edits, jobs["own"][:batch_size])  # loads the networks, and shows a step's inputs
        inputs = {**kept.inputs, **kept.backend.hold({"target": kept.inputs["target"]})}
        count = settings.edits // batch_size
        sides: dict[str, Callable[[], object]] = {
            BARE: partial(bare_steps, kept.backend, inputs, count, settings.steps, timer),
            SEQUENCE: partial(edits_in_sequence, pipe, jobs["own"], batch_size, folder / "out.png", timer),
            JOB: partial(run_list, edits, jobs["own"]),
            SAME: partial(run_list, edits, jobs["same"]),
            UNCACHED: partial(run_list, edits, jobs["same"]),
        }
        timed = {
            name: partial(timed_run, pipe, timer, side, 0 if name == UNCACHED else DEFAULT_BYTES)
            for name, side in sides.items()
        }
        with tqdm(total=len(sides) * (1 + repeat), desc="lists", unit="list", disable=not progress) as bar:
            runs = interleave(timed, repeat, warmup=1, done=bar.update)
    return {name: summarize(each, runs[BARE], settings.edits) for name, each in runs.items()}


class KeepingBackend(ForwardingBackend):
    """Keeps the inputs of the latest step."""

    inputs: Mapping[str, Any]

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        if step is not None:
            self.inputs = dict(inputs)
        return super().run(graph, inputs, step)


def bare_steps(
    backend: Backend, inputs: Mapping[str, Any], edits: int, steps: int, timer: StageTimer
) -> None:
    """The steps of as many edits, on the same inputs again and again."""
    for step in range(edits * steps):
        with timer.stage("step"):
            backend.run("transformer", inputs, SamplerStep(step % steps, steps))


def edits_in_sequence(
    pipe: Pipeline, jobs: Sequence[Job], batch_size: int, output: Path, timer: StageTimer
) -> None:
    """What a loop does in Python: read, edit and write, one after the other, with one pipeline."""
    for start in range(0, len(jobs), batch_size):
        options = [job.options for job in jobs[start : start + batch_size] if job.options is not None]
        with timer.stage("read"):
            images = [[open_picture(path) for path in each.image] for each in options]
        shared = {**edit_arguments(options[0]), "seed": [each.seed for each in options]}
        for picture in pipe.edit(images, [each.prompt for each in options], **shared):
            with timer.stage("write"):
                save_picture(picture, output)


def timed_run(pipe: Pipeline, timer: StageTimer, side: Callable[[], object], cache: int) -> Run:
    """Runs a side with a new cache of so many bytes, as a new command has it."""
    pipe.embeddings = EmbeddingCache(cache)
    timer.stages = {}
    with timer.stage("run"):
        side()
    return timer.stages


def summarize(runs: Sequence[Run], bare: Sequence[Run], edits: int) -> dict[str, Any]:
    """Over all runs of a side: steps and edits per second, the rate of steps as a share of the bare steps' in the same
    round, and the mean seconds that an edit takes in each stage."""
    rates = [steps_per_second(run) for run in runs]
    shares = [rate / steps_per_second(other) for rate, other in zip(rates, bare, strict=True)]
    means = {
        stage: sum(sum(run[stage]) for run in runs) / len(runs) / edits
        for stage in STAGES
        if stage in runs[0]
    }
    return {
        "steps_per_second": spread(rates),
        "edits_per_second": spread([edits / sum(run["run"]) for run in runs]),
        "of_bare_step": spread(shares),
        "seconds": {stage: round(mean, 6) for stage, mean in means.items()},
        "seconds_of_edit": round(sum(sum(run["run"]) for run in runs) / len(runs) / edits, 6),
    }


def steps_per_second(run: Run) -> float:
    return len(run["step"]) / sum(run["run"])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most, and the values."""
    least, median, most = (round(float(np.percentile(values, each)), 4) for each in (0, 50, 100))
    samples = [round(each, 4) for each in values]
    return {"median": median, "least": least, "most": most, "count": len(values), "samples": samples}
