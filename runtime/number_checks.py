"""Numbers that a user gives, checked."""

from __future__ import annotations

from numbers import Real
from typing import TypeGuard

from ..errors import KontextError


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number, Python's or numpy's, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_share(value: object, name: str) -> float:
    """A share above 0, at most 1. Raises KontextError, which calls it `name`, for anything else."""
    if not is_number(value) or not 0 < value <= 1:
        raise KontextError(f"{name} must be above 0 and at most 1, not {value!r}")
    return float(value)
