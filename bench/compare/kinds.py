"""Kinds of figures: whether more is better, what a threshold is a part of, and how a value is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RELATIVE, DECIBELS, POINTS, ERROR = "relative", "decibels", "points", "error"
"""What a change is: a share of the first value, a difference, in decibels or in points of a share, or a share of the
first value's distance from the perfect one."""

LEAST_ERROR = 0.001
"""Changes of a likeness that are smaller than this share of its perfect value are noise of arithmetic."""


MOST = 1e30
"""No figure is larger."""


@dataclass(frozen=True)
class Kind:
    """What a figure measures; its values are at least `least` (above `least`, if `above`) and at most `most`, which is
    the perfect one of a likeness."""

    name: str
    unit: str
    more_is_better: bool
    change: str
    show: Callable[[float], str]
    least: float = -MOST
    most: float = MOST
    above: bool = False

    def allows(self, value: float) -> bool:
        """Whether a figure of this kind can have this value."""
        over = value > self.least if self.above else value >= self.least
        return over and value <= self.most + 1e-6 * abs(self.most)


def scaled(factor: float, digits: int) -> Callable[[float], str]:
    return lambda value: f"{value * factor:.{digits}f}"


def significant(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


SECONDS = Kind("time", "ms", False, RELATIVE, lambda value: significant(value * 1000), 0)
BYTES = Kind("memory", "MiB", False, RELATIVE, scaled(2**-20, 1), 0, above=True)
JOULES = Kind("energy", "J", False, RELATIVE, significant, 0)
BITS = Kind("bits", "", False, RELATIVE, scaled(1, 3), 0)
RATE = Kind("rate", "/s", True, RELATIVE, significant, 0)
RATIO = Kind("ratio", "dB", True, DECIBELS, scaled(1, 2))
"""A ratio of signal to noise."""
LIKENESS = Kind("likeness", "", True, ERROR, scaled(1, 4), most=1)
"""A metric of pictures that is 1 for equal pictures, and lower for others."""
LIKENESS_100 = Kind("likeness of 100", "", True, ERROR, scaled(1, 2), most=100)
"""One that is 100 for equal pictures."""
DISTANCE = Kind("distance", "", False, RELATIVE, scaled(1, 4), 0)
"""One that is lower for them."""
SUCCESS = Kind("success", "%", True, POINTS, scaled(100, 1), 0, 1)
"""A share of edits that do what was asked."""

EVERY = (SECONDS, BYTES, JOULES, BITS, RATE, RATIO, LIKENESS, LIKENESS_100, DISTANCE, SUCCESS)
KINDS = {kind.name: kind for kind in EVERY}


def show_change(kind: Kind, change: float) -> str:
    if kind.change == DECIBELS:
        return f"{change:+.2f} dB"
    unit = {POINTS: " points", ERROR: "% error"}.get(kind.change, "%")
    return f"{100 * change:+.1f}{unit}"
