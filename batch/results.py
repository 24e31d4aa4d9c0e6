"""Results on the disk: each picture, then its line in the journal, written in a thread beside the next edit."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..runtime.images import save_picture
from .editing import Result
from .journal import Journal, Line

AHEAD = 8
"""Results that may wait for the disk; further ones hold up the edits."""


class Writer:
    """A context that writes results in their order; all that were put are on the disk when it ends.

    `put`, or the end of the context, raises the KontextError that writing met.
    """

    def __init__(self, journal: Journal, *, metadata: bool = True) -> None:
        self.journal = journal
        self.metadata = metadata
        self.pool = ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()

    def put(self, result: Result) -> None:
        self.waiting.append(self.pool.submit(self.write, result))
        while len(self.waiting) > AHEAD or (self.waiting and self.waiting[0].done()):
            self.waiting.popleft().result()

    def write(self, result: Result) -> None:
        job = result.job
        self.journal.make_room(job.key, job.row.number, job.name)
        if result.picture is not None:
            save_picture(result.picture, self.journal.folder / job.name, metadata=self.metadata)
        self.journal.append(line_of(result))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True)
        if kind is None:
            for each in self.waiting:
                each.result()


def line_of(result: Result) -> Line:
    job = result.job
    return {
        "id": job.id,
        "row": job.row.number,
        "digest": result.digest,
        "path": job.name if result.picture is not None else None,
        "seed": None if job.options is None else job.options.seed,
        "seconds": round(result.seconds, 3),
        "warnings": list(result.warnings),
        "error": result.error or None,
    }
