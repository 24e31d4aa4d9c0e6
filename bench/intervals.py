"""Confidence intervals of means, by the bootstrap: a value of each edit in, the interval of their mean out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of independent values: BCa (Efron 1987) by scipy, percentiles where BCa is not
    defined. Equal values, or a single one, are both ends: nothing is known of their spread.

    Args:
        values: at least one.
        seed: of the resampling; the same gives the same interval.
    """
    sample = np.asarray(values, np.float64)
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    for method in ("BCa", "percentile"):
        low, high = bootstrap(sample, method, seed)
        if np.isfinite([low, high]).all():
            break
    return low, high


def bootstrap(sample: np.ndarray, method: str, seed: int) -> tuple[float, float]:
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
