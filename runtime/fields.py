"""Typed access to untrusted JSON objects: every error names the field by its path."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CONTROL, KontextError
from .manifest_ranges import MOST_CHARACTERS, RANGES


class Fields:
    """A JSON object; `where` is its path in error messages, with the dot or colon behind it."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def error(self, name: str, what: str) -> KontextError:
        return KontextError(f"{self.where}{name} {what}")

    def get(self, name: str) -> Any:
        if name not in self.data:
            raise self.error(name, "is missing")
        return self.data[name]

    def group(self, name: str) -> Fields:
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return Fields(value, f"{self.where}{name}.")

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str) or not value:
            raise self.error(name, "must be a non-empty string")
        if len(value) > MOST_CHARACTERS:
            raise self.error(name, f"has {len(value)} characters, at most {MOST_CHARACTERS} are read")
        if not is_unicode(value):
            raise self.error(name, "is not valid Unicode text")
        return value

    def whole(self, name: str, least: int | None = None) -> int:
        """A whole number in its range of `RANGES`, and of at least `least`."""
        value, (low, high) = self.get(name), RANGES[name]
        low = low if least is None else max(low, least)
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"must be a whole number from {low} to {high}, not {shown(value)}")
        return value

    def number(self, name: str) -> float:
        """A number in its range of `RANGES`."""
        value, (low, high) = self.get(name), RANGES[name]
        if type(value) not in (int, float) or not low <= value <= high:  # also refuses nan
            raise self.error(name, f"must be a number from {low:g} to {high:g}, not {shown(value)}")
        return float(value)

    def wholes(self, name: str, count: int) -> tuple[int, ...]:
        return whole_numbers(self.get(name), count, lambda what: self.error(name, what), *RANGES[name])


def whole_numbers(
    value: Any,
    count: int,
    error: Callable[[str], KontextError],
    least: float = 1,
    most: float = (1 << 31) - 1,
) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or any(type(v) is not int or not least <= v <= most for v in value)
    ):
        raise error(f"must be {count} whole numbers from {least} to {most}")
    return tuple(value)


def is_unicode(text: str) -> bool:
    """Whether a string has no lone surrogate: JSON can write one, and no file can be named or printed with it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_control(data: Mapping[str, Any], path: Path) -> None:
    """Raises KontextError if any text in the JSON object of `path`, a name or a value, has a character of `CONTROL`.

    So whatever is taken from it can be printed and written to other files as it is.
    """
    pending: list[Any] = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and (found := CONTROL.search(value)):
            raise KontextError(
                f"{path}: the text {json.dumps(value):.80} has the control character U+{ord(found[0]):04X}"
            )


def shown(value: object) -> str:
    """A value for one line of text; printing a whole number of thousands of digits would be an error itself."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.40}" if not isinstance(value, (list, dict)) else f"a {type(value).__name__}"
