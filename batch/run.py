"""A list of jobs from its first to its last: pictures read ahead, edits, results written beside the next edit."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from ..runtime.bundle import Bundle
from ..runtime.lora import Loras
from ..runtime.pipeline import Pipeline
from ..runtime.server.decoding import Decoders
from .editing import Result, edit_all
from .jobs import Job
from .journal import RESULTS, Journal
from .loading import READERS, SECONDS, IsMade, Loaded, decode_job, loaded_ahead, read_job
from .results import Writer

SHOWN = 20
"""Failures that are printed; all are in the results."""


class Progress:
    """A bar with the time that is left, what has become of the jobs so far, and the summary at the end."""

    def __init__(self, total: int, *, show: bool) -> None:
        self.bar = tqdm(total=total, unit="job", disable=not show)
        self.made = self.earlier = self.warned = 0
        self.failed: list[str] = []

    def skip(self, job: Job, error: str | None) -> None:
        """A job that an earlier run has done, or that failed then."""
        self.bar.total -= 1  # what is left takes as long as the others took, not as these
        self.bar.refresh()
        if error is None:
            self.earlier += 1
        else:
            self.failed.append(f"{job.place}: {error}")

    def finish(self, result: Result) -> None:
        self.bar.update()
        self.warned += bool(result.warnings)
        if result.error:
            self.failed.append(f"{result.job.place}: {result.error}")
        else:
            self.made += 1

    def report(self, folder: Path, *, quiet: bool) -> None:
        """Prints what became of the jobs; failures even with `quiet`."""
        self.bar.close()
        earlier = f", {self.earlier} were there" if self.earlier else ""
        warned = f"; {self.warned} with warnings, see {folder / RESULTS}" if self.warned else ""
        if not quiet:
            print(f"made {self.made} picture{'s' * (self.made != 1)} in {folder}{earlier}{warned}")
        for line in self.failed[:SHOWN]:
            print(f"failed: {line}", file=sys.stderr)
        if len(self.failed) > SHOWN:
            print(f"failed: {len(self.failed) - SHOWN} more, see {folder / RESULTS}", file=sys.stderr)
        if self.failed and not quiet:
            print(f"{len(self.failed)} failed; --retry-failed runs them again", file=sys.stderr)


class Edits(Protocol):
    """What edits jobs: a pipeline here, or workers elsewhere."""

    ahead: int
    """Jobs to load before they are edited."""

    def load(self, job: Job, is_made: IsMade) -> Loaded:
        """A job as `edit` takes it. It runs in threads and must not warn."""

    def edit(self, jobs: Iterator[Loaded]) -> Iterator[Result]:
        """What becomes of jobs, in the order in which they finish. Raises KontextError if no job can succeed."""


class LocalEdits:
    """Edits with a pipeline, up to `most` jobs together. A context, which ends the processes that decode pictures."""

    def __init__(self, pipe: Pipeline, most: int) -> None:
        self.pipe, self.most, self.model = pipe, most, model_of(pipe.bundle, pipe.loras)
        self.ahead = READERS + 2 * most
        self.decoders = Decoders(READERS, SECONDS)

    def load(self, job: Job, is_made: IsMade) -> Loaded:
        loaded, files = read_job(job, self.model, is_made)
        return decode_job(loaded, files, self.decoders) if files is not None else loaded

    def edit(self, jobs: Iterable[Loaded]) -> Iterator[Result]:
        return edit_all(self.pipe, jobs, self.most)

    def __enter__(self) -> LocalEdits:
        return self

    def __exit__(self, *error: object) -> None:
        self.decoders.close()


def run_jobs(
    edits: Edits,
    jobs: Sequence[Job],
    folder: Path,
    progress: Progress,
    *,
    retry: bool,
    metadata: bool,
) -> None:
    """Runs the jobs that are left.

    Args:
        edits: runs them.
        jobs: of one list.
        folder: for the results.
        progress: is told what becomes of each job.
        retry: run failed jobs again.
        metadata: write into each picture's file what made it.

    Raises:
        KontextError: the folder cannot be written or holds something else, or the bundle cannot run at all.
    """
    with Journal.open(folder) as journal, Writer(journal, metadata=metadata) as writer:
        if retry:
            journal.forget(journal.failed())

        def load(job: Job) -> Loaded:
            return edits.load(job, lambda digest: journal.made(job.key, digest) is not None)

        loaded = loaded_ahead(load, jobs, edits.ahead)
        for result in edits.edit(to_edit(loaded, journal, writer, progress)):
            writer.put(result)
            progress.finish(result)


def model_of(bundle: Bundle, loras: Loras) -> str:
    """What every picture of a run depends on: the bundle's digest, and its LoRAs."""
    return " ".join([bundle.digest, *(f"{each.sha256}:{each.weight!r}" for each in loras.loaded)])


def to_edit(
    loaded: Iterator[Loaded], journal: Journal, writer: Writer, progress: Progress
) -> Iterator[Loaded]:
    """The jobs that are to be edited; what became of the others is said here."""
    for each in loaded:
        if each.made:
            progress.skip(each.job, journal.lines[each.job.key]["error"])
        elif each.error:
            result = Result(each.job, each.digest, warnings=each.warnings, error=each.error)
            writer.put(result)
            progress.finish(result)
        else:
            yield each
