"""A fleet of GPUs as a discrete-event simulation (SimPy): a queue that all share, batches, LoRAs, starts and failures.

Times are seconds. The same arguments and seed give the same outcome.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from .arrivals import Times
from .service import Service

NEAREST = 10
"""Measured batches that one at their time may take as long as."""

PROGRESS = 10_000
"""Edits between two calls of `done`."""

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Fleet:
    """The GPUs, and how edits get to them.

    Args:
        gpus: most that run.
        window: that the first edit of a batch waits for others, if the batch is not full.
        queue: most edits that wait; the next one is rejected. None: no limit.
        loras: that edits ask for, each as often; a batch has one.
        swap: to change a GPU's LoRA.
        minimum: that always run; the others start when more edits wait than the running and starting ones take in
            a batch each. None: all run.
        cold_start: from the start of a GPU to its first batch, and after a repair.
        idle: after which a GPU above `minimum` stops.
        between_failures: on average, of one GPU. Its batch is made again by another.
        repair: on average.
    """

    gpus: int
    window: float = 0.0
    queue: int | None = 256
    loras: int = 1
    swap: float = 0.0
    minimum: int | None = None
    cold_start: float = 0.0
    idle: float = 300.0
    between_failures: float = math.inf
    repair: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a simulation found; `latencies` are those of the edits that were made, from arrival to answer."""

    latencies: Times
    rejected: int
    failures: int
    seconds: float
    """From the first arrival's clock to the last answer."""
    busy: float
    """Seconds in which GPUs had a batch, of all together."""
    paid: float
    """Seconds in which GPUs were on, starts and repairs included, of all together."""
    inside: float
    """Edits that waited or were made, on average over `seconds`."""

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.latencies, percent)) if len(self.latencies) else math.inf

    @property
    def rejected_share(self) -> float:
        arrived = len(self.latencies) + self.rejected
        return self.rejected / arrived if arrived else 0.0


class Gpu:
    """One GPU's state."""

    def __init__(self) -> None:
        self.edits: list[int] = []
        self.lora = -1
        self.wake: simpy.Event | None = None
        """What it waits for while it is idle or off."""
        self.up = False
        """Started, and not under repair."""
        self.on_since = 0.0
        self.process: simpy.Process | None = None


class Simulation:
    """One run; `run` may be called once."""

    def __init__(
        self, times: Times, service: Service, fleet: Fleet, seed: int, done: Callable[[int], object]
    ) -> None:
        self.times, self.service, self.fleet, self.done = times, service, fleet, done
        self.rng = np.random.default_rng([seed, 1])
        self.environment = simpy.Environment()
        self.loras = self.rng.integers(0, fleet.loras, len(times)) if fleet.loras > 1 else None
        spread = np.asarray(service.spread or (1.0,))
        self.spread = (spread if service.spread_at else self.rng.permutation(spread)).tolist()
        self.draws: list[int] = []
        self.waiting: deque[int] = deque()
        self.idle: list[Gpu] = []
        self.off: list[Gpu] = []
        self.starting = 0
        self.finished = np.full(len(times), np.nan)
        self.left = len(times)
        self.rejected = self.failures = self.inside = 0
        self.busy = self.paid = self.area = self.changed = 0.0
        self.over = self.environment.event()

    def run(self) -> Outcome:
        gpus = [Gpu() for _ in range(self.fleet.gpus)]
        always = self.fleet.gpus if self.fleet.minimum is None else self.fleet.minimum
        for number, gpu in enumerate(gpus):
            gpu.up = number < always
            gpu.process = self.environment.process(self.work(gpu, off=number >= always))
            if math.isfinite(self.fleet.between_failures):
                self.environment.process(self.fail(gpu))
        if len(self.times):
            self.environment.process(self.arrive())
            self.environment.run(self.over)
        end = self.environment.now
        for gpu in gpus:
            if gpu not in self.off:
                self.paid += end - gpu.on_since
        made = ~np.isnan(self.finished)
        latencies = self.finished[made] - self.times[made] + self.service.overhead
        return Outcome(
            latencies,
            self.rejected,
            self.failures,
            end,
            self.busy,
            self.paid,
            self.area / end if end else 0.0,
        )

    def arrive(self) -> Process:
        environment, waiting, limit = self.environment, self.waiting, self.fleet.queue
        for edit, at in enumerate(self.times.tolist()):
            yield environment.timeout(max(0.0, at - environment.now))
            if limit is not None and not self.idle and len(waiting) >= limit:
                self.rejected += 1
                self.leave(1)
            else:
                self.count(1)
                waiting.append(edit)
                self.call()
            if edit % PROGRESS == PROGRESS - 1:
                self.done(PROGRESS)
        self.done(len(self.times) % PROGRESS)

    def count(self, change: int) -> None:
        """Edits come in or leave."""
        now = self.environment.now
        self.area += self.inside * (now - self.changed)
        self.changed = now
        self.inside += change

    def leave(self, edits: int) -> None:
        self.left -= edits
        if self.left == 0:
            self.over.succeed()

    def call(self) -> None:
        """Wakes a GPU for an edit that waits, or starts one."""
        if self.idle:
            wake = self.idle.pop().wake
            assert wake is not None
            wake.succeed()
        elif self.off:
            running = self.fleet.gpus - len(self.off)
            if len(self.waiting) > running * self.service.batch or running == 0:
                wake = self.off.pop().wake
                assert wake is not None
                wake.succeed()

    def work(self, gpu: Gpu, off: bool) -> Process:
        cold = False
        while True:
            try:
                if off:
                    yield from self.stay_off(gpu)
                    off, cold = False, True
                if cold:
                    yield self.environment.timeout(self.fleet.cold_start)
                    cold, gpu.up = False, True
                if not self.waiting:
                    off = yield from self.stay_idle(gpu)
                    continue
                if self.fleet.window and len(self.waiting) < self.service.batch:
                    yield self.environment.timeout(self.fleet.window)
                    if not self.waiting:
                        continue
                yield from self.make(gpu, self.take(gpu))
            except simpy.Interrupt:
                yield from self.mend(gpu)
                cold = True

    def stay_off(self, gpu: Gpu) -> Process:
        gpu.up, gpu.wake = False, self.environment.event()
        self.off.append(gpu)
        yield gpu.wake
        gpu.on_since = self.environment.now

    def stay_idle(self, gpu: Gpu) -> Generator[simpy.Event, Any, bool]:
        """Waits for an edit; whether it is to stop."""
        gpu.wake = self.environment.event()
        self.idle.append(gpu)
        if self.fleet.minimum is None:
            yield gpu.wake
            return False
        yield gpu.wake | self.environment.timeout(self.fleet.idle)
        if gpu.wake.triggered:
            return False
        self.idle.remove(gpu)
        if self.fleet.gpus - len(self.off) <= self.fleet.minimum:
            return False
        self.paid += self.environment.now - gpu.on_since
        return True

    def take(self, gpu: Gpu) -> list[int]:
        """The edit that waits longest, and others with its LoRA."""
        first = self.waiting.popleft()
        edits = [first]
        most = self.service.batch
        if most > 1 and self.loras is None:
            edits += [self.waiting.popleft() for _ in range(min(most - 1, len(self.waiting)))]
        elif most > 1:
            same = [edit for edit in self.waiting if self.loras[edit] == self.loras[first]][: most - 1]  # type: ignore[index]
            for edit in same:
                self.waiting.remove(edit)
            edits += same
        gpu.edits = edits
        return edits

    def make(self, gpu: Gpu, edits: list[int]) -> Process:
        seconds = self.service.seconds[len(edits) - 1] * self.draw()
        if self.loras is not None and gpu.lora != (lora := int(self.loras[edits[0]])):
            gpu.lora = lora
            seconds += self.fleet.swap
        began = self.environment.now
        try:
            yield self.environment.timeout(seconds)
        finally:
            self.busy += self.environment.now - began
        now = self.environment.now
        for edit in edits:
            self.finished[edit] = now
        gpu.edits = []
        self.count(-len(edits))
        self.leave(len(edits))

    def draw(self) -> float:
        """One of the spread's factors."""
        if len(self.spread) == 1:
            return float(self.spread[0])
        if self.service.spread_at:
            first = bisect.bisect(self.service.spread_at, self.environment.now) - NEAREST // 2
            first = max(0, min(first, len(self.spread) - NEAREST))
            return float(self.spread[int(self.rng.integers(first, min(first + NEAREST, len(self.spread))))])
        if not self.draws:
            self.draws = self.rng.integers(0, len(self.spread), 4096).tolist()
        return float(self.spread[self.draws.pop()])

    def fail(self, gpu: Gpu) -> Process:
        while True:
            yield self.environment.timeout(self.rng.exponential(self.fleet.between_failures))
            if gpu.up and gpu.process is not None:
                gpu.process.interrupt()

    def mend(self, gpu: Gpu) -> Process:
        """Gives the GPU's edits back, first in the queue, and repairs it."""
        gpu.up, gpu.lora = False, -1
        self.failures += 1
        if gpu in self.idle:
            self.idle.remove(gpu)
        self.waiting.extendleft(reversed(gpu.edits))
        gpu.edits = []
        for _ in range(min(len(self.idle), len(self.waiting))):
            self.call()
        yield self.environment.timeout(self.rng.exponential(self.fleet.repair))


def simulate(
    times: Times,
    service: Service,
    fleet: Fleet,
    *,
    seed: int = 0,
    done: Callable[[int], object] = lambda edits: None,
) -> Outcome:
    """Lets edits arrive at `times` (ascending), until all are made or rejected.

    Args:
        times: of arrival.
        service: of one GPU.
        fleet: the GPUs.
        seed: of service times, LoRAs and failures.
        done: called now and then with the number of edits that arrived since.
    """
    return Simulation(times, service, fleet, seed, done).run()
