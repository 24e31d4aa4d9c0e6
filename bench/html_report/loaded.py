"""What a report is made of: results that benchmarks wrote with `--json`, a demo's, and reports of sensitivity."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...regular_files import MAX_JSON_BYTES, read_json
from ..registry import SUBCOMMANDS, Entry, Result

SENSITIVITY, DEMO = "kontext-sensitivity", "demo"

SUBCOMMAND_OF = {
    "cold start": "coldstart",
    "success of edits": "edits",
    "fullsize edit": "fullsize-edit",
    "serving-rest": "serving",
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
    try:
        result = read_json(path, MAX_JSON_BYTES, "a result")
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    except (ValueError, KontextError) as fault:
        raise KontextError(f"{path} is not a result of kontext-bench: {fault}") from None
    if not isinstance(result, dict):
        raise KontextError(f"{path} is not a result of kontext-bench: give a file that --json wrote")
    result = printable(result)
    if result.get("format") == SENSITIVITY:
        return Loaded(path, SENSITIVITY, result, None)
    what = result.get("what")
    if not isinstance(what, str):
        raise KontextError(
            f"{path} is not a result of kontext-bench: it does not say what was measured; give a file that --json wrote"
        )
    if what == DEMO:
        return Loaded(path, what, result, None)
    name = SUBCOMMAND_OF.get(what, what)
    entry = next((each for each in SUBCOMMANDS if each.name == name and each.measures), None)
    if entry is not None and what in OTHER_MODULE:
        entry = dataclasses.replace(entry, module=OTHER_MODULE[what])
    if entry is None:
        raise KontextError(f"{path} holds {what!r:.60}, which no benchmark of this version measures")
    return Loaded(path, what, result, entry)


def printable(value: Any) -> Any:
    """JSON with its unprintable characters replaced."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [printable(each) for each in value]
    if isinstance(value, dict):
        return {printable(key): printable(each) for key, each in value.items()}
    return value
