"""Kinds of figures: whether more is better, what a threshold is a part of, and how a value is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RELATIVE, DECIBELS, POINTS = "relative", "decibels", "points"
"""What a change is: a share of the first value, or a difference, in decibels or in points of a share."""


@dataclass(frozen=True)
class Kind:
    """What a figure measures."""

    name: str
    unit: str
    more_is_better: bool
    change: str
    show: Callable[[float], str]


def scaled(factor: float, digits: int) -> Callable[[float], str]:
    return lambda value: f"{value * factor:.{digits}f}"


def significant(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


SECONDS = Kind("time", "ms", False, RELATIVE, lambda value: significant(value * 1000))
BYTES = Kind("memory", "MiB", False, RELATIVE, scaled(2**-20, 1))
JOULES = Kind("energy", "J", False, RELATIVE, significant)
BITS = Kind("bits", "", False, RELATIVE, scaled(1, 3))
RATE = Kind("rate", "/s", True, RELATIVE, significant)
RATIO = Kind("ratio", "dB", True, DECIBELS, scaled(1, 2))
"""A ratio of signal to noise."""
LIKENESS = Kind("likeness", "", True, RELATIVE, scaled(1, 4))
"""A metric of pictures that is higher for pictures that are more alike."""
DISTANCE = Kind("distance", "", False, RELATIVE, scaled(1, 4))
"""One that is lower for them."""
SUCCESS = Kind("success", "%", True, POINTS, scaled(100, 1))
"""A share of edits that do what was asked."""

KINDS = {kind.name: kind for kind in (SECONDS, BYTES, JOULES, BITS, RATE, RATIO, LIKENESS, DISTANCE, SUCCESS)}


def show_change(kind: Kind, change: float) -> str:
    if kind.change == DECIBELS:
        return f"{change:+.2f} dB"
    return f"{100 * change:+.1f}{' points' if kind.change == POINTS else '%'}"
