"""The simulation beside a real server: the same arrivals, in open loop, and what both say of latency and throughput.

The simulation knows of the server what closed loops show (`service.of_levels`), and how fast the machine was during the
load (`batches.as_fast_as`). Before each load the server's throughput is measured again, which sets its rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ...errors import KontextError
from ...runtime.server_client import Client, Edit
from ..machine import describe_machine
from ..serving.load import closed_loop, numbered, open_loop
from .arrivals import Arrivals, Bursty, Poisson, Times
from .batches import as_fast_as
from .service import Service, of_levels
from .simulation import Fleet, simulate

LOADS: tuple[tuple[str, float], ...] = (
    ("poisson", 0.5),
    ("poisson", 0.8),
    ("poisson", 0.95),
    ("bursty", 0.7),
)
"""Kind of arrivals, and their rate as a share of the server's throughput."""

GOAL = 0.15
"""How far apart both may be."""

BURST_SECONDS = 4.0
"""Short, so that a run has several."""

RUNS = 20
"""Simulations of the same arrivals, with other service times; their mean counts."""

CLOSED, CROWDED, LEAST_EDITS = 24, 12, 10
"""Edits at each number of callers, at least; batches at the most callers; edits of a load, at least."""


def check_server(
    client: Client, edit: Edit, batch: int, *, seconds: float, seed: int, progress: bool = False
) -> dict[str, Any]:
    """Measures the server in closed loops, then lets edits arrive for `seconds` at each of LOADS.

    Args:
        client: of the server.
        edit: what every caller sends, with a prompt and pictures of its own each time.
        batch: most edits that the server samples together.
        seconds: of each load.
        seed: of the arrivals.
        progress: show a bar.

    Raises:
        KontextError: an edit failed.
    """
    numbers = itertools.count()

    def prepared(count: int) -> list[Edit]:
        return [numbered(edit, number, same=False) for number in itertools.islice(numbers, count)]

    def crowded() -> dict[str, Any]:
        return closed_level(client, prepared(CROWDED * batch), 2 * batch, stagger)

    _, alone = closed_loop(client, prepared(5), 1)  # the first warms up
    # Callers that begin together may stay together, and then nobody waits while their batch is made.
    stagger = float(np.median(alone[1:])) / 2
    callers = [1, *(2 << power for power in range(batch.bit_length()) if 1 << power < batch)]
    with tqdm(total=len(callers) + 2 * len(LOADS), desc="loads", disable=not progress) as bar:
        levels = []
        for each in callers:
            levels.append(closed_level(client, prepared(max(CLOSED, 6 * each)), each, stagger))
            bar.update()
        rows: list[dict[str, Any]] = []
        for index, (kind, load) in enumerate(LOADS):
            level = crowded()
            bar.update()
            if not rows:
                levels.append(level)
                service = of_levels("server", levels, batch)
            arrivals = arrivals_of(kind, load * level["per_second"])
            times = arrivals.times(seconds, np.random.default_rng([seed, index]))
            if len(times) < LEAST_EDITS:
                raise KontextError(
                    f"only {len(times)} edits arrive in {seconds:g} s: give more --seconds-of-load"
                )
            taken, latencies = open_loop(client, prepared(len(times)), list(times))
            bar.update()
            measured = figures(taken, latencies)
            now = as_fast_as(service, times, times + latencies)
            rows.append(
                {
                    "arrivals": arrivals.to_json(),
                    "load": load,
                    "edits": len(times),
                    "capacity": level["per_second"],
                    "service": now.to_json(),
                    "measured": measured,
                    "simulated": simulated(times, now, seed),
                }
            )
    for row in rows:
        row["apart"] = {
            name: round(row["simulated"][name] / row["measured"][name] - 1, 4) for name in row["measured"]
        }
    return {
        "what": "capacity check",
        "prompt": edit.prompt,
        "references": len(edit.images),
        "steps": edit.steps,
        "size": edit.size,
        "batch": batch,
        "seconds": seconds,
        "goal": GOAL,
        "levels": levels,
        "loads": rows,
        "machine": describe_machine(),
    }


def closed_level(client: Client, edits: Sequence[Edit], callers: int, stagger: float) -> dict[str, Any]:
    """A closed loop's throughput and latencies, as the serving benchmark has them."""
    seconds, latencies = closed_loop(client, edits, callers, stagger)
    return {
        "concurrency": callers,
        "per_second": round(len(latencies) / seconds, 4),
        "samples": [round(each, 6) for each in latencies],
    }


def arrivals_of(kind: str, rate: float) -> Arrivals:
    return Poisson(rate) if kind == "poisson" else Bursty(rate, peak=2.0, seconds=BURST_SECONDS)


def figures(seconds: float, latencies: Sequence[float]) -> dict[str, float]:
    """The figures that are compared."""
    return {
        "p50": round(float(np.percentile(latencies, 50)), 6),
        "p95": round(float(np.percentile(latencies, 95)), 6),
        "per_second": round(len(latencies) / seconds, 4),
    }


def simulated(times: Times, service: Service, seed: int) -> dict[str, float]:
    """The same figures of a server of one pipeline, on average."""
    found = []
    for run in range(RUNS):
        outcome = simulate(times, service, Fleet(1), seed=seed + run)
        found.append(figures(outcome.seconds - float(times[0]), list(outcome.latencies)))
    return {name: round(float(np.mean([each[name] for each in found])), 6) for name in found[0]}
