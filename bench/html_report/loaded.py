"""What a report is made of: results that benchmarks wrote with `--json`, a demo's, and reports of sensitivity."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...regular_files import read_json
from ..registry import SUBCOMMANDS, Entry, Result
from ..result_file import MOST_BYTES, check_finite, read_result

SENSITIVITY, DEMO = "kontext-sensitivity", "demo"

SUBCOMMAND_OF = {
    "cold start": "coldstart",
    "success of edits": "edits",
    "fullsize edit": "fullsize-edit",
    "serving-rest": "serving",
    "capacity check": "capacity",
}
"""What a result says it is → its subcommand, where that has another name."""

OTHER_MODULE = {"serving-rest": "serving.rest"}
"""Whose tables those of the subcommand are not."""

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
"""Characters that XML or a reader has no use for; a plot with one would not be XML."""


@dataclass(frozen=True)
class Loaded:
    """A file of results; `entry` is the benchmark that made it, None for a demo and a sensitivity report."""

    path: Path
    what: str
    result: Result
    entry: Entry | None


def load(path: Path) -> Loaded:
    """Reads one of a report's RESULTS.

    Raises:
        KontextError: it cannot be read, or is none of what a report shows.
    """
    result = read_report(path) or read_result(path)
    check_finite(result, path)
    result = printable(result)
    if result.get("format") == SENSITIVITY:
        return Loaded(path, SENSITIVITY, result, None)
    what = result["what"]
    if what == DEMO:
        return Loaded(path, what, result, None)
    name = SUBCOMMAND_OF.get(what, what)
    entry = next((each for each in SUBCOMMANDS if each.name == name and each.measures), None)
    if entry is not None and what in OTHER_MODULE:
        entry = dataclasses.replace(entry, module=OTHER_MODULE[what])
    if entry is None:
        raise KontextError(f"{path} holds {what!r:.60}, which no benchmark of this version measures")
    return Loaded(path, what, result, entry)


def read_report(path: Path) -> Result | None:
    """A report of sensitivity; None if it is none."""
    try:
        found = read_json(path, MOST_BYTES, "a result")
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    return found if isinstance(found, dict) and found.get("format") == SENSITIVITY else None


def printable(value: Any) -> Any:
    """JSON with its unprintable characters replaced."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [printable(each) for each in value]
    if isinstance(value, dict):
        return {printable(key): printable(each) for key, each in value.items()}
    return value
