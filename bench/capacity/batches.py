"""The batches that a server made of a load, as its answers show them: those of one batch come together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...errors import KontextError
from .arrivals import Times
from .service import Service

FEWEST = 5
"""Batches that say how fast a server was."""


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
    times, ratios = [], []
    for before, end, batch in zip(ends, ends[1:], batches[1:], strict=False):
        waited = arrivals[batch].min() + service.overhead < before
        if waited and len(batch) <= service.batch:
            times.append(before)
            ratios.append((end - before) / service.seconds[len(batch) - 1])
    if len(ratios) < FEWEST:
        raise KontextError(
            f"only {len(ratios)} batches of a load followed another: give more --seconds-of-load"
        )
    return replace(service, spread=tuple(ratios), spread_at=tuple(times))
