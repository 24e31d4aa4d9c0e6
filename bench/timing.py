"""Times of an edit's stages, medians and 95th percentiles, and sides that are measured in turn.

Sides take turns (A B A B …) in one run, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

Outcome = TypeVar("Outcome")


@dataclass
class StageTimer:
    """Seconds of each stage of one edit, in the order that they ran; a stage that runs N times has N entries."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    synchronize: Callable[[], object] | None = None
    """Waits for the device before each reading; None on a CPU."""

    def now(self) -> float:
        if self.synchronize is not None:
            self.synchronize()
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.stages.setdefault(name, []).append(self.now() - start)

    def wrap(self, name: str, call: Callable[..., Outcome]) -> Callable[..., Outcome]:
        """`call`, timed as stage `name`."""

        def timed(*args: Any, **kwargs: Any) -> Outcome:
            with self.stage(name):
                return call(*args, **kwargs)

        return timed


@dataclass(frozen=True)
class Percentiles:
    """Of repeated measurements of the same thing."""

    median: float
    p95: float
    count: int
    samples: Sequence[float]
    """One for each run that is independent of the others: what `compare` tests."""

    @classmethod
    def of(cls, values: Sequence[float], samples: Sequence[float] | None = None) -> Percentiles:
        """Of `values`, which are the samples too unless several of them are of one run."""
        if not values:
            raise ValueError("no values")
        kept = values if samples is None else samples
        return cls(float(np.median(values)), float(np.percentile(values, 95)), len(values), kept)

    def to_json(self) -> dict[str, Any]:
        return {
            "median": round(self.median, 6),
            "p95": round(self.p95, 6),
            "count": self.count,
            "samples": [round(float(each), 6) for each in self.samples],
        }


def interleave(
    sides: Mapping[str, Callable[[], Outcome]],
    repeat: int,
    *,
    warmup: int = 0,
    done: Callable[[], object] | None = None,
) -> dict[str, list[Outcome]]:
    """Calls every side in turn for `warmup + repeat` rounds; returns each side's last `repeat` results.

    `done` is called after each call (to advance a progress bar).
    """
    results: dict[str, list[Outcome]] = {name: [] for name in sides}
    for turn in range(warmup + repeat):
        for name, side in sides.items():
            result = side()
            if turn >= warmup:
                results[name].append(result)
            if done is not None:
                done()
    return results
