"""The README's measured sections, made of the results in bench/results: `kontext-bench readme`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import KontextError
from . import coldstart, edits, exporting, fidelity, fullsize, latency, serving
from .report import Table, replace_section


class Part(NamedTuple):
    """One result's tables in a section, under a line that says which command made them."""

    file: str
    tables: Callable[[dict[str, Any]], Sequence[Table]]
    footer: Callable[[dict[str, Any]], str]
    title: str = ""


SECTIONS: dict[str, list[Part]] = {
    "edits": [Part("edits.json", edits.tables, edits.footer)],
    "speed": [
        Part(
            "coldstart.json",
            coldstart.tables,
            coldstart.footer,
            "Cold start (`kontext-bench coldstart`), process start to PNG:",
        ),
        Part(
            "latency.json",
            latency.tables,
            latency.footer,
            "An edit, stage by stage (`kontext-bench latency --against diffusers`):",
        ),
        Part(
            "export.json",
            exporting.tables,
            exporting.footer,
            "Exporting the embedded model (`kontext-bench export`):",
        ),
    ],
    "fidelity": [Part("fidelity.json", fidelity.tables, fidelity.footer)],
    "fullsize": [Part("fullsize.json", fullsize.tables, fullsize.footer)],
    "serving": [Part("serving.json", serving.tables, serving.footer)],
}


def rewrite(readme: Path, results: Path) -> list[str]:
    """Rewrites every section of `readme` whose results are all in the folder `results`; returns their names.

    Raises:
        KontextError: a result cannot be read, or the README lacks a section.
    """
    done = []
    for name, parts in SECTIONS.items():
        if all((results / part.file).exists() for part in parts):
            replace_section(
                readme, name, "\n\n".join(text for part in parts for text in render(part, results))
            )
            done.append(name)
    return done


def render(part: Part, results: Path) -> list[str]:
    path = results / part.file
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        tables, footer = part.tables(result), part.footer(result)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise KontextError(f"{path} is not a result of kontext-bench: {fault!r}; measure again") from None
    return [*([part.title] if part.title else []), *(table.markdown() for table in tables), footer]
