"""A list of jobs from its first to its last: pictures read ahead, edits, results written beside the next edit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ..runtime.pipeline import Pipeline
from ..runtime.server.decoding import Decoders
from .editing import Result, edit_all
from .jobs import Job
from .journal import RESULTS, Journal
from .loading import READERS, SECONDS, Loaded, Loader, loaded_ahead
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


def run_jobs(
    pipe: Pipeline,
    jobs: Sequence[Job],
    folder: Path,
    progress: Progress,
    *,
    most: int,
    retry: bool,
    metadata: bool,
) -> None:
    """Runs the jobs that are left.

    Args:
        pipe: runs the edits.
        jobs: of one list.
        folder: for the results.
        progress: is told what becomes of each job.
        most: pictures in a batch.
        retry: run failed jobs again.
        metadata: write into each picture's file what made it.

    Raises:
        KontextError: the folder cannot be written or holds something else, or the bundle cannot run at all.
    """
    with Journal.open(folder) as journal, Writer(journal, metadata=metadata) as writer:
        if retry:
            journal.forget(journal.failed())
        decoders = Decoders(READERS, SECONDS)
        try:
            loader = Loader(
                model_of(pipe), decoders, lambda job, digest: journal.made(job.key, digest) is not None
            )
            loaded = loaded_ahead(loader.load, jobs, ahead=READERS + 2 * most)
            for result in edit_all(pipe, to_edit(loaded, journal, writer, progress), most):
                writer.put(result)
                progress.finish(result)
        finally:
            decoders.close()


def model_of(pipe: Pipeline) -> str:
    """What every picture of a run depends on: the bundle's digest, and its LoRAs."""
    return " ".join([pipe.bundle.digest, *(f"{each.sha256}:{each.weight!r}" for each in pipe.loras.loaded)])


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
