"""A verdict on each figure of two results: better, worse, or neither."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .figures import Figure
from .kinds import DECIBELS, ERROR, LEAST_ERROR, Kind
from .statistics import Change, independent_change, paired_change, single_change

BETTER, WORSE, SAME, WITHIN, FEW = "better", "worse", "no difference", "within threshold", "too few runs"


@dataclass(frozen=True)
class Rules:
    """What counts as a change.

    Args:
        threshold: of times, memory, rates and distances as a share of the first value; of likenesses as a share of its
            distance from the perfect value; of success in points.
        threshold_db: of ratios in decibels.
        alpha: a difference is noise unless chance makes such a one less often.
    """

    threshold: float = 0.05
    threshold_db: float = 0.5
    alpha: float = 0.05

    def least(self, kind: Kind) -> float:
        """The smallest change of a figure that counts."""
        return self.threshold_db if kind.change == DECIBELS else self.threshold


def judge_figures(
    before: Mapping[str, Figure], after: Mapping[str, Figure], rules: Rules
) -> list[dict[str, Any]]:
    """A row for each figure that both results have, as JSON."""
    return [judge(before[name], after[name], rules) for name in before if name in after]


def judge(before: Figure, after: Figure, rules: Rules) -> dict[str, Any]:
    kind, change = before.kind, change_of(before, after)
    return {
        "name": before.name,
        "kind": kind.name,
        "more_is_better": kind.more_is_better,
        "a": rounded(change.before),
        "b": rounded(change.after),
        "change": rounded(change.change),
        "interval": None if change.interval is None else [rounded(each) for each in change.interval],
        "p": None if change.p is None else rounded(change.p),
        "test": change.test,
        "runs": [count(before), count(after)],
        "verdict": verdict(kind, change, rules),
    }


def rounded(value: float) -> float | None:
    """Six significant digits; JSON has no infinities."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def count(figure: Figure) -> int:
    return len(figure.samples or figure.paired or "1")


def change_of(before: Figure, after: Figure) -> Change:
    """Of the edits that both have, where it is about edits. Raises ValueError if one has runs and the other has not."""
    if before.samples is not None and after.samples is not None:
        return independent_change(before.kind, before.samples, after.samples)
    if before.paired is not None and after.paired is not None:
        keys = [key for key in before.paired if key in after.paired]
        if not keys:
            raise ValueError(f"{before.name}: no edit is in both results")
        return paired_change(
            before.kind, [before.paired[key] for key in keys], [after.paired[key] for key in keys]
        )
    if before.value is not None and after.value is not None:
        return single_change(before.kind, before.value, after.value)
    raise ValueError(f"{before.name}: only one of the results keeps the values of its runs")


def verdict(kind: Kind, change: Change, rules: Rules) -> str:
    """Without a test, of what was measured once, the threshold alone decides."""
    better_by = change.change if kind.more_is_better and kind.change != ERROR else -change.change
    if change.p is not None and change.p >= rules.alpha:
        return FEW if change.least_p >= rules.alpha else SAME
    if kind.change == ERROR and abs(change.after - change.before) < LEAST_ERROR * kind.most:
        return WITHIN if change.change else SAME
    if better_by > rules.least(kind):
        return BETTER
    if -better_by > rules.least(kind):
        return WORSE
    return WITHIN if change.change else SAME
