"""The exception type for whatever a user can cause: a message in the user's words, on one line."""

from __future__ import annotations


class KontextError(Exception):
    """Bad input: what is wrong, where, and what would be right. Commands print it on one line and exit with 2."""


class ComputationError(KontextError):
    """A network did not run, or computed no finite numbers: the bundle or the machine is at fault, not the request.
    A server reports it as a failure of its own."""
