"""When edits arrive: as a Poisson process, or in bursts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals, `rate` a second."""

    rate: float

    def times(self, seconds: float, rng: np.random.Generator) -> Times:
        """Ascending, from 0 to `seconds`."""
        return np.sort(rng.uniform(0, seconds, rng.poisson(self.rate * seconds)))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "poisson", "rate": self.rate}


@dataclass(frozen=True)
class Bursty:
    """A Poisson process whose rate changes between two values, each for an exponential time (Markov-modulated).

    Args:
        rate: over all time, a second.
        peak: the rate in a burst as a multiple of `rate`.
        share: of time that is a burst; `peak * share` is at most 1.
        seconds: that a burst lasts on average.
    """

    rate: float
    peak: float = 3.0
    share: float = 0.2
    seconds: float = 60.0

    def times(self, seconds: float, rng: np.random.Generator) -> Times:
        """Ascending, from 0 to `seconds`."""
        between = self.rate * (1 - self.peak * self.share) / (1 - self.share)
        calm = self.seconds * (1 - self.share) / self.share
        found, now, bursts = [], 0.0, bool(rng.random() < self.share)
        while now < seconds:
            end = min(now + rng.exponential(self.seconds if bursts else calm), seconds)
            rate = self.rate * self.peak if bursts else between
            found.append(np.sort(rng.uniform(now, end, rng.poisson(rate * (end - now)))))
            now, bursts = end, not bursts
        return np.concatenate(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "bursty",
            "rate": self.rate,
            "peak": self.peak,
            "share": self.share,
            "seconds": self.seconds,
        }


Arrivals = Poisson | Bursty
