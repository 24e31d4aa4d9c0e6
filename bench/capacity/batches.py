"""The batches that a server made of a load, as its answers show them: those of one batch come together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...errors import KontextError
from .arrivals import Times
from .service import Service

FEWEST = 5
"""Batches that say how fast a server was, or how long a size takes."""

RUNNING, ROUNDS = 21, 20
"""Batches of a running mean, and fits."""


def as_fast_as(service: Service, arrivals: Times, answers: Times) -> Service:
    """The service with the speed that the server had during a load: what batches took that followed one another.

    A machine is not as fast at all times, and near its capacity a queue multiplies each difference. So the simulation
    of a load is given how long its batches took, at which time of it; how they come about, how long edits wait for
    them, and what is left of the queue, it has to find itself.

    Args:
        service: of the same server, as closed loops show it.
        arrivals: seconds at which edits were sent.
        answers: seconds at which each was answered, on the same clock.

    Raises:
        KontextError: too few batches followed another.
    """
    order = np.argsort(answers)
    # Answers of one batch come closer to each other than the shortest batch takes.
    first = np.flatnonzero(np.diff(answers[order], prepend=-np.inf) > service.seconds[0] / 2)
    batches = np.split(order, first[1:])
    ends = [float(answers[batch[0]]) for batch in batches]
    times, sizes, taken = [], [], []
    for before, end, batch in zip(ends, ends[1:], batches[1:], strict=False):
        waited = arrivals[batch].min() + service.overhead < before
        if waited and len(batch) <= service.batch:
            times.append(before)
            sizes.append(len(batch))
            taken.append(end - before)
    if len(taken) < FEWEST:
        raise KontextError(
            f"only {len(taken)} batches of a load followed another: give more --seconds-of-load"
        )
    seconds, ratios = size_and_speed(service, np.array(sizes), np.array(taken))
    return replace(service, seconds=seconds, spread=ratios, spread_at=tuple(times))


def size_and_speed(
    service: Service, sizes: NDArray[np.int64], taken: Times
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What batches of one edit, of two, … take on average, and each batch's time as a multiple of its size's.

    Both are fitted in turn, since larger batches are made when the server is slow: the speed as a running mean, then
    the seconds of each size at that speed. Of a size with fewer than FEWEST batches they are what closed loops say.
    Were all from closed loops, an error in one size would count as another speed of all batches near it in time.
    """
    table, often = np.array(service.seconds), [n for n in set(sizes.tolist()) if (sizes == n).sum() >= FEWEST]
    window = np.ones(min(RUNNING, len(taken)))
    speed = np.ones(len(taken))
    for _ in range(ROUNDS):
        ratios = taken / table[sizes - 1]
        speed = np.convolve(ratios, window, "same") / np.convolve(np.ones(len(taken)), window, "same")
        for size in often:
            table[size - 1] = (taken / speed)[sizes == size].mean()
    table = np.maximum.accumulate(table * speed.mean())
    return tuple(map(float, table)), tuple(map(float, taken / table[sizes - 1]))
