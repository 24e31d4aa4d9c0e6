"""Means of measures over edits with their intervals, and errors beside the difference that another seed makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..intervals import mean_interval
from .measures import MEASURES, Measure
from .runs import Values

MORE_DIGITS = 2
"""Of stored values, beyond those that are shown."""


def summary(every: Sequence[Values], seed: int) -> dict[str, Any]:
    """For each measure that applies to some of the edits: its mean, `…_interval` (95 %, bootstrap over edits; None of
    few) and `…_each`, a value or None for each edit."""
    result: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        each = [values.get(name) for values in every]
        known = [value for value in each if value is not None]
        if not known:
            continue
        digits = measure.digits + MORE_DIGITS
        result[name] = round(float(np.mean(known)), digits)
        result[f"{name}_interval"] = rounded(mean_interval(known, seed), digits)
        result[f"{name}_each"] = [stored(value, measure, digits) for value in each]
    return result


def rounded(ends: tuple[float, float] | None, digits: int) -> list[float] | None:
    return None if ends is None else [round(end, digits) for end in ends]


def stored(value: float | None, measure: Measure, digits: int) -> float | bool | None:
    if value is None:
        return None
    return bool(value) if measure.is_verdict else round(value, digits)


def beside_seeds(
    every: Sequence[Values], other_seed: Sequence[Values], reference: Sequence[Values], seed: int
) -> dict[str, Any]:
    """For each measure: the mean error as a ratio to the mean difference that another seed of the reference makes, the
    95 % interval of error minus difference, paired by edit, and what follows.

    The verdict is "equal" if no edit has an error, "below" or "above" if that interval is on one side of 0, else, or of
    too few edits for an interval, "open".
    """
    result: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        pairs = [
            (measure.difference(value, same), measure.difference(other, same))
            for value, other, same in (
                (found.get(name), seeded.get(name), known.get(name))
                for found, seeded, known in zip(every, other_seed, reference, strict=True)
            )
            if value is not None and other is not None and same is not None
        ]
        if not pairs:
            continue
        error, difference = (float(np.mean(side)) for side in zip(*pairs, strict=True))
        ends = mean_interval([ours - seeds for ours, seeds in pairs], seed)
        result[name] = {
            "ratio": round(error / difference, 4) if difference > 0 else None,
            "interval": rounded(ends, 6),
            "verdict": verdict(error, ends),
        }
    return result


def verdict(error: float, ends: tuple[float, float] | None) -> str:
    if error == 0:
        return "equal"
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "open"
    return "below" if ends[1] < 0 else "above"
