"""The smallest fleet that holds a goal, by simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from ...errors import KontextError
from .arrivals import Arrivals, Times
from .service import Service
from .simulation import Fleet, Outcome, simulate

PROBE = 100_000
"""Edits that fleets are tried with; the one that is found is tried with all."""

GROWTH = 1.1


@dataclass(frozen=True)
class Goal:
    """What a fleet must hold: 95 of 100 edits take at most `p95` seconds; at most `rejected` of all are rejected."""

    p95: float
    rejected: float = 0.001

    def holds(self, outcome: Outcome) -> bool:
        return outcome.percentile(95) <= self.p95 and outcome.rejected_share <= self.rejected


def smallest_fleet(
    arrivals: Arrivals,
    seconds: float,
    service: Service,
    fleet: Fleet,
    goal: Goal,
    *,
    seed: int,
    progress: bool = False,
) -> tuple[Fleet, Outcome]:
    """The fleet with the fewest GPUs that holds the goal, and what all edits of `seconds` found there.

    Args:
        arrivals: of edits.
        seconds: that they arrive for.
        service: of one GPU.
        fleet: everything but the number of GPUs, which is the fewest that are tried.
        goal: to be held.
        seed: of arrivals and everything else; every fleet meets the same arrivals.
        progress: show bars.

    Raises:
        KontextError: no fleet holds the goal, or no edit arrives.
    """
    times = arrivals.times(seconds, np.random.default_rng([seed, 0]))
    if not len(times):
        raise KontextError("no edit arrives in that time: give a higher rate or more hours")
    alone = service.seconds[0] * float(np.percentile(service.spread or (1.0,), 95)) + service.overhead
    if alone > goal.p95:
        raise KontextError(
            f"no fleet holds a p95 of {goal.p95:g} s: an edit alone on a GPU takes {alone:.3g} s ({service.name})"
        )
    probe = times[:PROBE]

    def tried(gpus: int, edits: Times) -> Outcome:
        with tqdm(
            total=len(edits), desc=f"{service.name}, {gpus} GPUs", unit="edit", disable=not progress
        ) as bar:
            return simulate(edits, service, replace(fleet, gpus=gpus), seed=seed, done=bar.update)

    found = first_that(
        lambda gpus: goal.holds(tried(gpus, probe)),
        max(fleet.gpus, int(arrivals.rate / service.rate)),
        f"a p95 of {goal.p95:g} s",
    )
    outcome = tried(found, times)
    while not goal.holds(outcome):  # what the probe had not seen
        found += max(1, found // 100)
        outcome = tried(found, times)
    return replace(fleet, gpus=found), outcome


def first_that(holds: Callable[[int], bool], least: int, what: str) -> int:
    """The smallest number, at least `least` and 1, that holds; larger ones are taken to hold too."""
    low, high = max(least, 1) - 1, max(least, 1)
    most = 20 * high + 100
    while not holds(high):
        if high >= most:
            raise KontextError(f"no fleet of up to {most} GPUs holds {what}")
        low, high = high, min(int(high * GROWTH) + 1, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
