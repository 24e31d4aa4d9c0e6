"""The exception type for whatever a user can cause: a message in the user's words, on one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class KontextError(Exception):
    """Bad input: what is wrong, where, and what would be right. Commands print it on one line and exit with 2."""


class ComputationError(KontextError):
    """A network did not run or computed no finite numbers, or a content filter does not work: not the request is at
    fault. A server reports it as a failure of its own."""


class BundleError(KontextError):
    """The bundle itself is at fault: whatever else would run it fails in the same way, and is not tried."""


@contextmanager
def bundle_errors() -> Iterator[None]:
    """A context, or a decorator, in which every KontextError is one of the bundle."""
    try:
        yield
    except KontextError as error:
        raise BundleError(str(error)) from None


class Cancelled(KontextError):
    """An edit's callback stopped it."""
