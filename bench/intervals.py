"""Confidence intervals by the bootstrap: a value of each edit in, the interval of their mean, or of another statistic,
out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000

FEWEST = 6
"""Edits that an interval needs. Fewer all lie on one side of a difference of nothing in more than 5 of 100 cases, as in
the sign test: 2 / 2^5 is 6 %, 2 / 2^6 is 3 %."""

Array = NDArray[np.float64]


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """As `interval`, of the mean."""
    return interval([values], np.mean, seed)


def interval(
    samples: Sequence[Sequence[float]], statistic: Callable[..., Any], seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of a statistic: BCa (Efron 1987) by scipy, percentiles where BCa is not defined. Equal values
    are both ends. None for fewer values than `FEWEST`.

    Args:
        samples: of equal length, at least one value each; values at one index are of one edit, and drawn together.
        statistic: of as many arrays; it reduces the axis that its keyword `axis` names.
        seed: of the resampling; the same gives the same interval.
    """
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    if len(arrays[0]) < FEWEST:
        return None
    if all(np.ptp(array) == 0 for array in arrays):
        only = float(statistic(*arrays, axis=0))
        return only, only
    for method in ("BCa", "percentile"):
        low, high = bootstrap(arrays, statistic, method, seed)
        if np.isfinite([low, high]).all():
            break
    return low, high


def bootstrap(
    samples: Sequence[Array], statistic: Callable[..., Any], method: str, seed: int
) -> tuple[float, float]:
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            samples,
            statistic,
            paired=len(samples) > 1,
            vectorized=True,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
