"""Numbers that a user gives, checked."""

from __future__ import annotations

from numbers import Real
from typing import TypeGuard

from ..errors import KontextError
from .manifest_ranges import RANGES


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number, Python's or numpy's, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


SCALE_LIMIT = RANGES["guidance"][1]
"""Of true CFG and a LoRA's weight too, far beyond what makes pictures: larger ones end in infinities."""


def checked_scale(value: object, name: str, least: float = -SCALE_LIMIT) -> float:
    """A number from `least` to `SCALE_LIMIT`. Raises KontextError, which calls it `name`, for anything else."""
    if not is_number(value) or not least <= value <= SCALE_LIMIT:
        raise KontextError(f"{name} must be a number from {least:g} to {SCALE_LIMIT:g}, not {given(value)}")
    return float(value)


def given(value: object) -> str:
    """A value in a message: Python refuses to write whole numbers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return "one of thousands of digits"


def checked_share(value: object, name: str) -> float:
    """A share above 0, at most 1. Raises KontextError, which calls it `name`, for anything else."""
    if not is_number(value) or not 0 < value <= 1:
        raise KontextError(f"{name} must be above 0 and at most 1, not {given(value)}")
    return float(value)
