"""Which edits take the next step. Batches of different kinds take turns, so that none waits for the end of another.

A request waits until it gets a place. Requests of one kind share a batch, and wait for each other's; of the places for
batches, half are kept for requests of no more work than an edit with the bundle's defaults. Who waits longest goes
first, where a request counts as later the more work it is. A place that is free is never kept from the only kind that
waits. Of the batches that have a place, the one that had the least time so far takes the next step.

One thread does all this, and hands its turn to the threads of the batches: at any time one of them runs.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from .jobs import Job

SECONDS_PER_WORK = 10.0
"""By how much later a request counts for each default edit's work."""

PATIENCE_SECONDS = 0.5
"""How long the first of a batch waits for requests whose pictures are still being decoded, while nothing else is to be
done. A picture of 12 million pixels takes 0.2 s."""

SWEEP_SECONDS = 1.0
"""Between two looks for waiting requests whose callers have left."""


Run: TypeAlias = Callable[[list[Job], Callable[[], None]], None]
"""Runs jobs of one kind to their ends, and calls its second argument after each step."""


class Turns:
    """Runs jobs; `run` may be `jobs.run_jobs` of a pipeline.

    Args:
        run: runs a batch.
        largest: most jobs in a batch.
        places: batches that are begun and not ended at any time. Each holds memory.
        default_work: `Job.work` of an edit with the bundle's defaults.
    """

    def __init__(self, run: Run, largest: int, places: int, default_work: float) -> None:
        self.run = run
        self.largest = largest
        self.places = places
        self.default_work = default_work
        self.calls: deque[Callable[[], None]] = deque()
        self.waiting: list[Job] = []
        self.active: list[Batch] = []
        self.expected = 0
        """Requests that will be added."""
        self.turn_began: float | None = None
        self.swept = 0.0
        self.closing = False
        self.change = threading.Condition()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def queue_length(self) -> int:
        """Requests that are expected or wait."""
        return self.expected + len(self.waiting)

    def expect(self) -> None:
        """Says that a request will be added."""
        with self.change:
            self.expected += 1

    def between_steps(self, call: Callable[[], None]) -> None:
        """Has an expected request's `call` done while no batch runs; it may call `add`."""
        with self.change:
            self.calls.append(call)
            self.change.notify()

    def add(self, job: Job) -> None:
        """Lets a job wait for its turn; only from a call of `between_steps`."""
        self.waiting.append(job)

    def stuck_seconds(self) -> float:
        """How long the present turn has taken: a step, or the work before the first or after the last one; infinite if
        the thread that gives turns has died."""
        began = self.turn_began
        if not self.thread.is_alive():
            return math.inf
        return 0.0 if began is None else time.monotonic() - began

    def close(self) -> None:
        """Returns when all jobs have ended."""
        with self.change:
            self.closing = True
            self.change.notify()
        self.thread.join()

    def loop(self) -> None:
        while True:
            with self.change:
                while not (self.calls or self.waiting or self.active):
                    if self.closing and not self.expected:
                        return
                    self.change.wait()
                calls = list(self.calls)
                self.calls.clear()
            for call in calls:
                try:
                    call()
                except Exception:  # of one request; the others go on
                    traceback.print_exc()
            with self.change:
                self.expected -= len(calls)
            self.sweep()
            if not self.gathers():
                self.start()
            if self.active:
                batch = min(self.active, key=lambda each: each.used)
                self.turn_began = time.monotonic()
                batch.turn()
                self.turn_began = None
                if batch.ended:
                    self.active.remove(batch)

    def sweep(self) -> None:
        """Ends waiting jobs whose callers have left, now and then: asking the server takes a moment."""
        now = time.monotonic()
        if now - self.swept > SWEEP_SECONDS:
            self.swept = now
            for job in self.waiting:
                job.close_if_cancelled()
                if not job.open:
                    job.leave()
            self.waiting = [job for job in self.waiting if job.open]

    def gathers(self) -> bool:
        """Waits a little for what is being decoded, if there is nothing else to do; whether it did."""
        if self.active or not self.waiting:
            return False
        left = min(job.arrived for job in self.waiting) + PATIENCE_SECONDS - time.monotonic()
        with self.change:
            if self.expected == 0 or left <= 0:
                return False
            if not self.calls:
                self.change.wait(left)
        return True

    def start(self) -> None:
        """Gives the free places to waiting jobs."""
        while len(self.active) < self.places:
            taken = {batch.kind for batch in self.active}
            long = sum(batch.long for batch in self.active)
            may_be_long = long < max(1, self.places // 2)
            ready = [job for job in self.waiting if job.kind not in taken and (may_be_long or not job.long)]
            if not ready:
                return
            first = min(ready, key=self.rank)
            most = max(1, self.largest // first.width)
            jobs = [job for job in self.waiting if job.kind == first.kind][:most]
            self.waiting = [job for job in self.waiting if job not in jobs]
            for job in jobs:
                job.leave()
            used = min((batch.used for batch in self.active), default=0.0)
            self.active.append(Batch(jobs, self.run, used))

    def rank(self, job: Job) -> float:
        return job.arrived + SECONDS_PER_WORK * job.work / self.default_work


class Batch:
    """Jobs of one kind, in a thread that runs during `turn` only."""

    def __init__(self, jobs: list[Job], run: Run, used: float) -> None:
        self.kind = jobs[0].kind
        self.used = used
        """Seconds that it had, counted from what the others had when it began."""
        self.long = any(job.long for job in jobs)
        self.ended = False
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self.work, args=(jobs, run), daemon=True)
        self.thread.start()

    def turn(self) -> None:
        """Runs until the next step is done, or all is."""
        began = time.monotonic()
        self.go.release()
        self.back.acquire()
        self.used += time.monotonic() - began

    def work(self, jobs: list[Job], run: Run) -> None:
        self.go.acquire()
        try:
            run(jobs, self.pause)
        finally:
            self.ended = True
            self.back.release()

    def pause(self) -> None:
        self.back.release()
        self.go.acquire()
