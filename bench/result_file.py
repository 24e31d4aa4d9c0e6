"""Reads results that benchmarks wrote with `--json`, and refuses those that this version cannot read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..regular_files import read_json
from .provenance import SCHEMA

MOST_BYTES = 64 << 20


def in_words(fault: Exception) -> str:
    """What reading a result of another form ended in."""
    if isinstance(fault, KeyError):
        return f"it has no {fault.args[0]!s:.80}" if fault.args else "something is missing"
    if isinstance(fault, IndexError):
        return "a list is too short"
    if isinstance(fault, (TypeError, AttributeError)):
        return "an entry is of another kind"
    return f"{fault!s:.200}" or "an entry is of another kind"


def check_finite(value: Any, path: Path, where: str = "") -> None:
    """Raises KontextError if JSON holds NaN or an infinity, which Python reads and writes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise KontextError(f"{path}: {where or 'it'} is {value}, which is no number: measure it again")
    below = value.items() if isinstance(value, dict) else ()
    listed = enumerate(value) if isinstance(value, list) else below
    for name, each in listed:
        if isinstance(each, (float, list, dict)):
            check_finite(each, path, f"{where}.{name}" if where else str(name))


def read_result(path: Path) -> dict[str, Any]:
    """A result as JSON. One from before results had a version has no `schema`.

    Raises:
        KontextError: it cannot be read, or is no result, or of a later version than this one, or has figures that are
            no numbers.
    """
    try:
        result = read_json(path, MOST_BYTES, "a result")
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    if not isinstance(result, dict) or not isinstance(result.get("what"), str):
        raise KontextError(f"{path} is not a result of kontext-bench: it does not say what was measured")
    check_finite(result, path)
    version = result.get("schema", 0)
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise KontextError(f"{path} is not a result of kontext-bench: its schema is {json.dumps(version)}")
    if version > SCHEMA:
        raise KontextError(
            f"{path} is a result of version {version}, and this kontext-bench reads up to version {SCHEMA}: update it"
        )
    return result
