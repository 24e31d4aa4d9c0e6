"""How an edit ended: the metrics' outcome, the kind of error, and what its caller is told."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import ComputationError, KontextError
from . import contract
from .jobs import Refused, TookTooLong

OUTCOMES = ("ok", "invalid", "refused", "busy", "cancelled", "late", "failed")


class Full(KontextError):
    """The server has no room for another request."""


def explain(error: BaseException | None, log: Callable[[str], object]) -> tuple[str, str, str]:
    """The metrics' outcome, one of `contract.ERROR_CODES`, and the caller's message of an error.

    Args:
        error: of an edit; None: it was cancelled.
        log: called with the details of internal errors, which callers are not told.
    """
    if error is None:
        return "cancelled", "CANCELLED", "cancelled"
    if isinstance(error, Refused):
        return "refused", "INVALID_ARG", str(error)
    if isinstance(error, Full):
        return "busy", "UNAVAILABLE", str(error)
    if isinstance(error, TookTooLong):
        return "late", "INVALID_ARG", str(error)
    if isinstance(error, ComputationError):
        return "failed", "INTERNAL", str(error)
    if isinstance(error, KontextError):
        return "invalid", "INVALID_ARG", str(error)
    if isinstance(error, MemoryError):
        return "failed", "UNAVAILABLE", "not enough memory: try a smaller SIZE, or later"
    log(f"{type(error).__name__}: {error}")
    return "failed", "INTERNAL", contract.BROKEN
