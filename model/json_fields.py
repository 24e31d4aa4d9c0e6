"""Typed access to the JSON files of checkpoints: errors name the file and the field, and unread fields are found."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..regular_files import MAX_JSON_BYTES, read_json
from .config import LARGEST_SIZE


class Fields:
    """The fields of one JSON file, checked when read, and the names of those that were read: `known`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = read_json(path, MAX_JSON_BYTES, "a configuration")
        except FileNotFoundError:
            raise KontextError(f"{path} is missing: the checkpoint is incomplete") from None
        except OSError as error:
            raise KontextError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(data, dict):
            raise KontextError(f"{path} should hold a JSON object")
        self.data: dict[str, Any] = data
        self.known: set[str] = set()

    def get(self, name: str) -> Any:
        """The field's value, unchecked; None if it is missing."""
        self.known.add(name)
        return self.data.get(name)

    def error(self, name: str, expected: str) -> KontextError:
        return KontextError(f"{self.path}: {name} is {self.data.get(name)!r}, expected {expected}")

    def integer(self, name: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
        """A size or count: from 1 to `most`."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.error(name, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e12:
            raise self.error(name, "a number")
        return float(value)

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        value = self.get(name)
        if value is None and default is not None:
            return tuple(default)
        if (
            not isinstance(value, list)
            or not value
            or not all(type(v) is int and 1 <= v <= LARGEST_SIZE for v in value)
        ):
            raise self.error(name, "a list of whole numbers")
        return tuple(value)

    def require(self, name: str, *allowed: object, default: object = None) -> Any:
        """The field's value, which must be one of `allowed`; `default` if the field is missing or null."""
        value = self.get(name)
        value = default if value is None else value
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise self.error(name, " or ".join(repr(choice) for choice in allowed))
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.require(name, True, False, default=default))

    def warn_of_others(self, harmless: Collection[str]) -> None:
        """Warns of fields that were not read and are not in `harmless`, once all others have been read. Null has no
        effect anywhere, and names that begin with an underscore are the libraries' own notes."""
        others = [
            f"{name} = {json.dumps(value):.60}"
            for name, value in sorted(self.data.items())
            if not (value is None or name in self.known or name in harmless or name.startswith("_"))
        ]
        if others:
            warnings.warn(f"{self.path}: unknown, and not used: {', '.join(others)}", stacklevel=2)
