"""How long a GPU takes for a batch of edits: from a benchmark's result, or from numbers that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import KontextError
from ..registry import Result
from ..result_file import in_words, read_result


@dataclass(frozen=True)
class Service:
    """Seconds of batches.

    Args:
        name: what it is called in tables.
        seconds: of a batch of one edit, of two, …: means.
        overhead: seconds of an edit outside its batch (network, decoding), while the GPU may do something else.
        spread: what measured runs took, as multiples of their mean; none: every batch takes its mean.
        spread_at: when those were, ascending; none: a batch takes any of them, else one of those nearest to its time.
    """

    name: str
    seconds: tuple[float, ...]
    overhead: float = 0.0
    spread: tuple[float, ...] = ()
    spread_at: tuple[float, ...] = ()

    @property
    def batch(self) -> int:
        """The most edits in a batch."""
        return len(self.seconds)

    @property
    def rate(self) -> float:
        """Edits a second that one GPU makes at most."""
        return max(number / seconds for number, seconds in enumerate(self.seconds, 1))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": [round(each, 6) for each in self.seconds],
            "overhead": round(self.overhead, 6),
        }


def read_service(path: Path, batch: int | None) -> Service:
    """From a result of `latency`, `serving` or `batch` with samples.

    Args:
        path: the JSON.
        batch: the most edits that the server samples together; None: what the result says.

    Raises:
        KontextError: it is another result, or has not what is needed.
    """
    result = read_result(path)
    readers = {"latency": of_latency, "serving": of_serving, "batch": of_batch}
    if result["what"] not in readers:
        raise KontextError(
            f"{path} is a result of {result['what']!r:.40}: give one of latency, serving or batch"
        )
    try:
        return readers[result["what"]](result, path.name, batch)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as fault:
        raise KontextError(
            f"{path} has no values of runs that a simulation can take ({in_words(fault)}): measure it again"
        ) from None


def of_latency(result: Result, name: str, batch: int | None) -> Service:
    """One edit at a time."""
    if batch not in (None, 1):
        raise KontextError(f"{name} measured edits one at a time: --batch needs a result of serving")
    samples = result["sides"]["kontext"]["edit"]["samples"]
    return Service(name, (float(np.mean(samples)),), spread=ratios(samples))


def of_batch(result: Result, name: str, batch: int | None) -> Service:
    """Batches of the list's size; smaller ones are taken to be proportionally shorter."""
    size = int(result["batch_size"])
    if batch not in (None, size):
        raise KontextError(f"{name} measured batches of {size}, not of {batch}")
    samples = [size / rate for rate in result["sides"]["kontext-batch"]["edits_per_second"]["samples"]]
    whole = float(np.mean(samples))
    return Service(name, tuple(whole * n / size for n in range(1, size + 1)), spread=ratios(samples))


def of_serving(result: Result, name: str, batch: int | None) -> Service:
    """From its levels of callers."""
    most = batch or result["batch"]
    if most is None:
        raise KontextError(f"{name} does not say how many edits its server samples together: add --batch")
    return of_levels(name, result["levels"], int(most))


def of_levels(name: str, levels: Sequence[dict[str, Any]], most: int) -> Service:
    """From closed loops with different numbers of callers.

    Of 2 n callers n wait while a batch of n is made, so that the pipeline is never idle, and n / throughput is what a
    batch of n takes. (The server begins a batch with whoever waits: whatever the sizes are, two batches make up the
    2 n callers. If all of them stayed together, the result would be off by half of what is around an edit.) A single
    caller's edit takes that long with n = 1, and what is around it: decoding and the network.

    Raises:
        KontextError: 1, 2, or twice the batch's size of callers are not among the levels.
    """
    rates = {int(level["concurrency"]): float(level["per_second"]) for level in levels}
    known = {min(callers // 2, most): callers for callers in sorted(rates) if callers > 1}
    if 1 not in rates or 2 not in rates or most not in known:
        raise KontextError(
            f"{name} lacks a number of callers: 1, 2 and {2 * most} are needed, twice a batch of {most}"
        )
    seconds = {number: number / rates[callers] for number, callers in known.items()}
    table = np.maximum.accumulate(np.interp(range(1, most + 1), list(seconds), list(seconds.values())))
    alone = next(level["samples"] for level in levels if level["concurrency"] == 1)
    overhead = max(float(np.mean(alone)) - seconds[1], 0.0)
    return Service(name, tuple(map(float, table)), overhead, ratios(alone))


def ratios(samples: Sequence[float]) -> tuple[float, ...]:
    """The samples as multiples of their mean."""
    mean = float(np.mean(samples))
    return tuple(each / mean for each in samples)
