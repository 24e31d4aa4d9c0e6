"""Whether a figure changed, or whether the difference is noise: tests and intervals, all by scipy.

Independent runs: the medians, by the Mann-Whitney U test. Values of the same edits: the means, by Wilcoxon's
signed-rank test; verdicts on the same edits by McNemar's exact test. Intervals are of the bootstrap (percentiles).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kinds import ERROR, POINTS, RELATIVE, Kind

Array = NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Change:
    """From one value to another.

    Args:
        before, after: medians or means, or the values themselves.
        change: relative, of the distance from the perfect value, or a difference, as the figure's kind says.
        interval: of the change, 95 %; None for single values.
        p: the probability of such a difference, or a larger one, by chance; None for single values.
        least_p: the smallest that so few runs can have.
        test: its name.
    """

    before: float
    after: float
    change: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    least_p: float = 0.0
    test: str | None = None


def single_change(kind: Kind, before: float, after: float) -> Change:
    """Of what was measured once on each side."""
    return Change(before, after, float(difference(kind)(np.float64(before), np.float64(after))))


def independent_change(kind: Kind, before: Sequence[float], after: Sequence[float]) -> Change:
    """Of independent runs of both sides."""
    from scipy import stats

    first, second = (np.asarray(each, np.float64) for each in (before, after))
    p = float(stats.mannwhitneyu(first, second, alternative="two-sided").pvalue)
    return changed(
        kind,
        first,
        second,
        np.median,
        paired=False,
        p=p,
        least_p=2 / math.comb(len(first) + len(second), len(first)),
        test="Mann-Whitney U",
    )


def paired_change(kind: Kind, before: Sequence[float], after: Sequence[float]) -> Change:
    """Of the same edits on both sides, in the same order."""
    from scipy import stats

    first, second = (np.asarray(each, np.float64) for each in (before, after))
    apart = second - first
    apart = apart[apart != 0]
    least_p = 2.0 ** (1 - len(first))
    if kind.change == POINTS:
        wins = int((apart > 0).sum())
        p = float(stats.binomtest(wins, len(apart)).pvalue) if len(apart) else 1.0
        return changed(kind, first, second, np.mean, paired=True, p=p, least_p=least_p, test="McNemar, exact")
    p = float(stats.wilcoxon(apart).pvalue) if len(apart) else 1.0
    return changed(
        kind, first, second, np.mean, paired=True, p=p, least_p=least_p, test="Wilcoxon signed-rank"
    )


def changed(
    kind: Kind,
    first: Array,
    second: Array,
    center: Callable[..., Any],
    *,
    paired: bool,
    p: float,
    least_p: float,
    test: str,
) -> Change:
    """The change of a mean or median, with its interval."""
    from scipy import stats

    change = difference(kind)

    def statistic(one: Array, other: Array, axis: int = -1) -> Any:
        return change(center(one, axis=axis), center(other, axis=axis))

    found = float(statistic(first, second))
    interval: tuple[float, float] | None = (found, found)
    if min(len(first), len(second)) < 2:  # nothing is known of the spread
        interval = None
    elif np.ptp(first) or np.ptp(second):
        with np.errstate(invalid="ignore"):  # a change from nothing is infinite
            bounds = stats.bootstrap(
                (first, second),
                statistic,
                n_resamples=RESAMPLES,
                paired=paired,
                vectorized=True,
                method="percentile",
                rng=np.random.default_rng(0),
            ).confidence_interval
        interval = (float(bounds.low), float(bounds.high))
    return Change(float(center(first)), float(center(second)), found, interval, p, least_p, test)


def difference(kind: Kind) -> Callable[[Any, Any], Any]:
    """The change between two values, as the kind counts it."""

    def relative(before: Any, after: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before == after, 0.0, after / before - 1)

    if kind.change == ERROR:
        return lambda before, after: relative(kind.most - before, kind.most - after)
    return relative if kind.change == RELATIVE else lambda before, after: after - before
