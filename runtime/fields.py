"""Typed access to untrusted JSON objects: every error names the field by its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import KontextError


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
        return value

    def whole(self, name: str, least: int = 1) -> int:
        value = self.get(name)
        if type(value) is not int or value < least:
            raise self.error(name, f"must be a whole number of at least {least}, not {value!r:.40}")
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        if type(value) not in (int, float) or not abs(value) < 1e30:  # also refuses nan
            raise self.error(name, f"must be a number, not {value!r:.40}")
        return float(value)

    def wholes(self, name: str, count: int) -> tuple[int, ...]:
        return whole_numbers(self.get(name), count, lambda what: self.error(name, what))


def whole_numbers(
    value: Any, count: int, error: Callable[[str], KontextError], least: int = 1
) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or any(type(v) is not int or v < least for v in value)
    ):
        raise error(f"must be {count} {'positive ' if least else ''}whole numbers")
    return tuple(value)
