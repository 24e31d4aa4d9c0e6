"""Writes the measured sections and plots of docs/ from the results in bench/results: `kontext-bench readme`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import KontextError
from . import coldstart, edits, exporting, latency, quantspeed, serving
from .fidelity import approximations, methods, report
from .fullsize import exporting as fullsize
from .report import Table, replace_section


class Part(NamedTuple):
    """One result's tables in a section, under a line that says which command made them."""

    file: str
    tables: Callable[[dict[str, Any]], Sequence[Table]]
    footer: Callable[[dict[str, Any]], str]
    title: str = ""


DOCUMENTS: dict[str, dict[str, list[Part]]] = {
    "docs/benchmarks.md": {
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
        "fidelity": [Part("fidelity.json", report.tables, report.footer)],
        "quantspeed": [Part("quantspeed.json", quantspeed.tables, quantspeed.footer)],
        "fullsize": [Part("fullsize.json", fullsize.tables, fullsize.footer)],
        "serving": [Part("serving.json", serving.tables, serving.footer)],
    },
    "docs/fidelity.md": {
        "fidelity": [
            Part("fidelity.json", report.tables, report.footer),
            Part("fidelity.json", lambda _: [], report.plot_link),
        ],
        "details": [Part("fidelity.json", report.detail_tables, report.detail_footer)],
    },
    "docs/approximations.md": {
        "approximations": [Part("approximations.json", approximations.tables, approximations.footer)],
        "work": [Part("approximations.json", approximations.work_tables, approximations.work_footer)],
    },
    "docs/quantization.md": {"methods": [Part("methods.json", methods.tables, methods.footer)]},
}
"""Document → section → the results in it."""

PLOTS = {f"docs/images/{report.PLOT}": ("fidelity.json", report.draw)}


def rewrite(document: Path, results: Path, sections: Mapping[str, Sequence[Part]]) -> list[str]:
    """Rewrites every section of `document` whose results are all in the folder `results`; returns their names.

    Raises:
        KontextError: a result cannot be read, or the document lacks a section.
    """
    done = []
    for name, parts in sections.items():
        if all((results / part.file).exists() for part in parts):
            replace_section(
                document, name, "\n\n".join(text for part in parts for text in render(part, results))
            )
            done.append(name)
    return done


def rewrite_all(root: Path, results: Path) -> dict[Path, list[str]]:
    """Rewrites the documents that exist under the repository's root; returns path → sections rewritten.

    Raises:
        KontextError: none of them exists there, or one cannot be rewritten.
    """
    documents = {root / name: sections for name, sections in DOCUMENTS.items() if (root / name).exists()}
    if not documents:
        raise KontextError(f"{root} is not the root of the repository: it has no {', '.join(DOCUMENTS)}")
    return {document: rewrite(document, results, sections) for document, sections in documents.items()}


def draw(root: Path, results: Path) -> list[Path]:
    """Draws the documents' plots whose results exist; returns their paths."""
    done = []
    for name, (file, plot) in PLOTS.items():
        if (results / file).exists():
            plot(read(results / file), root / name)
            done.append(root / name)
    return done


def read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise KontextError(f"{path} cannot be read as a result: {fault}; measure again") from None
    return result


def render(part: Part, results: Path) -> list[str]:
    path = results / part.file
    result = read(path)
    try:
        tables, footer = part.tables(result), part.footer(result)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise KontextError(f"{path} is not a result of kontext-bench: {fault!r}; measure again") from None
    return [*([part.title] if part.title else []), *(table.markdown() for table in tables), footer]
