"""The exception type for whatever a user can cause: a message in the user's words, on one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""Characters that act on a terminal or a text instead of being seen: control characters, separators of lines, and those
that turn the direction of writing. Python's `isprintable` also refuses spaces and letters that names of files have."""

MOST_CHARACTERS = 2000
"""Of a message, which may quote a file."""


class KontextError(Exception):
    """Bad input: what is wrong, where, and what would be right. Commands print it on one line and exit with 2.

    A message may quote what a file says: `CONTROL` characters in it are shown, not acted upon.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Text without `CONTROL` characters: spaces for those that separate, and Python's escapes, such as \\x1b, for the
    others. Of a long text, its beginning and its end."""
    shown = CONTROL.sub(lambda found: " " if found[0].isspace() else ascii(found[0])[1:-1], cut(text))
    return cut(shown)  # escapes are longer than what they stand for


def cut(text: str) -> str:
    """The beginning and the end of a text of more than `MOST_CHARACTERS`."""
    if len(text) <= MOST_CHARACTERS:
        return text
    end = MOST_CHARACTERS // 4
    return f"{text[: MOST_CHARACTERS - end - 3]} … {text[-end:]}"


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
