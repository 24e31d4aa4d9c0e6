"""Rewrites the measured sections and plots of docs/ from the results in bench/results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import KontextError
from . import coldstart, edits, exporting, latency, placement, throughput
from .batch import benchmark as batch
from .capacity import benchmark as capacity
from .edit_fidelity import tables as edit_fidelity
from .fidelity import approximations, methods
from .fidelity import benchmark as fidelity
from .fidelity import plot as fidelity_plot
from .fidelity import tables as fidelity_tables
from .fullsize import benchmark as fullsize
from .fullsize import edit as fullsize_edit
from .loras import benchmark as loras
from .memory import cards, plan_fidelity, plans, predicted, vram_fit
from .quantspeed import benchmark as quantspeed
from .registry import Benchmark, Result
from .report import Table, replace_section
from .result_file import in_words, read_result
from .serving import benchmark as serving
from .serving import plot as serving_plot
from .serving import rest as serving_rest


class Content(NamedTuple):
    """A result's tables and footer in a section, below an optional line of introduction."""

    file: str
    tables: Callable[[Result], Sequence[Table]]
    footer: Callable[[Result], str]
    title: str = ""


def of(file: str, benchmark: Benchmark, title: str = "") -> list[Content]:
    """A benchmark's own tables and footer."""
    return [Content(file, benchmark.tables, benchmark.footer, title)]


DOCUMENTS: dict[str, dict[str, list[Content]]] = {
    "docs/benchmarks.md": {
        "edits": of("edits.json", edits),
        "speed": [
            *of("coldstart.json", coldstart, "Cold start (`kontext-bench coldstart`), process start to PNG:"),
            *of(
                "latency.json",
                latency,
                "An edit, stage by stage (`kontext-bench latency --against diffusers,…`):",
            ),
            *of("throughput.json", throughput, "Several edits in a call (`kontext-bench throughput`):"),
            *of(
                "export.json",
                exporting,
                "Exporting the embedded model (`kontext-bench export`), with an empty cache and again:",
            ),
        ],
        "fidelity": of("fidelity.json", fidelity),
        "quantspeed": of("quantspeed.json", quantspeed),
        "loras": of("loras.json", loras),
        "fullsize": of("fullsize.json", fullsize),
        "batch": of("batch.json", batch),
        "serving": [
            *of("serving.json", serving),
            Content("serving.json", lambda _: [], serving_plot.plot_link),
        ],
    },
    "docs/fidelity.md": {
        "fidelity": [
            *of("fidelity.json", fidelity),
            Content("fidelity.json", lambda _: [], fidelity_plot.plot_link),
        ],
        "edit-fidelity": [
            Content("edit_fidelity.json", level.tables, level.note, level.title)
            for level in edit_fidelity.LEVELS
        ],
        "details": [Content("fidelity.json", fidelity_tables.detail_tables, fidelity_tables.detail_footer)],
    },
    "docs/approximations.md": {
        "approximations": of("approximations.json", approximations),
        "work": [Content("approximations.json", approximations.work_tables, approximations.work_footer)],
    },
    "docs/quantization.md": {"methods": of("methods.json", methods)},
    "docs/planning.md": {
        "cards": of("cards.json", cards),
        "plan-fidelity": of("plan_fidelity.json", plan_fidelity),
        "plans": of("plans.json", plans),
        "memory": of("memory.json", predicted),
    },
    "docs/openvino.md": {
        "executors": [
            *of("latency_openvino.json", latency, "One edit of the embedded model:"),
            *of(
                "quantspeed_openvino.json",
                quantspeed,
                "One step of a wider model (`kontext-bench quantspeed --openvino`):",
            ),
            *of("quantspeed_openvino_amx.json", quantspeed, "The same on a processor with AMX:"),
        ],
        "fullsize-edit": of("fullsize_edit.json", fullsize_edit),
    },
    "docs/rest.md": {"rest": [Content("rest.json", serving_rest.tables, serving_rest.footer)]},
    "docs/devices.md": {"placement": of("placement.json", placement)},
    "docs/capacity.md": {
        "check": of("capacity.json", capacity),
        "fleet": [
            *of("fleet.json", capacity, "Arrivals at random (Poisson):"),
            *of("fleet_bursty.json", capacity, "Arrivals in bursts, twice the rate for a fifth of the time:"),
        ],
    },
    "docs/kernels.md": {"vram-fit": of("vram_fit.json", vram_fit)},
}
"""Document → section → its contents."""

PLOTS: dict[str, tuple[str, Callable[[Result, Path], None]]] = {
    f"docs/images/{fidelity_plot.PLOT}": ("fidelity.json", fidelity_plot.draw_fidelity),
    f"docs/images/{plans.PLOT}": ("plans.json", plans.draw_plans),
    f"docs/images/{serving_plot.PLOT}": ("serving.json", serving_plot.draw_load),
}
"""Plot → the result that it shows, and what draws it."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root", type=Path, nargs="?", default=Path(), metavar="ROOT", help="the repository (.)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="of the JSON files (ROOT/bench/results)"
    )


def run(arguments: argparse.Namespace) -> None:
    results = arguments.results or arguments.root / "bench" / "results"
    for document, sections in rewrite_documents(arguments.root, results).items():
        print(f"{document}: {', '.join(sections) or 'no results, no section'} rewritten")
    for plot in draw_plots(arguments.root, results):
        print(f"{plot} drawn")


def rewrite(document: Path, results: Path, sections: Mapping[str, Sequence[Content]]) -> list[str]:
    """Rewrites the sections of `document` whose results all exist in the folder `results`; returns their names.

    Raises:
        KontextError: a result cannot be read, or the document lacks a section.
    """
    done = []
    for name, contents in sections.items():
        if all((results / content.file).exists() for content in contents):
            texts = [text for content in contents for text in render(content, results)]
            replace_section(document, name, "\n\n".join(texts))
            done.append(name)
    return done


def rewrite_documents(root: Path, results: Path) -> dict[Path, list[str]]:
    """Rewrites the documents that exist under the repository's root; returns path → sections rewritten.

    Raises:
        KontextError: none of them exists there, or one cannot be rewritten.
    """
    documents = {root / name: sections for name, sections in DOCUMENTS.items() if (root / name).exists()}
    if not documents:
        raise KontextError(f"{root} is not the root of the repository: it has no {', '.join(DOCUMENTS)}")
    return {document: rewrite(document, results, sections) for document, sections in documents.items()}


def draw_plots(root: Path, results: Path) -> list[Path]:
    """Draws the documents' plots whose results exist; returns their paths."""
    done = []
    for name, (file, draw) in PLOTS.items():
        if (results / file).exists():
            draw(read_result(results / file), root / name)
            done.append(root / name)
    return done


def render(content: Content, results: Path) -> list[str]:
    path = results / content.file
    result = read_result(path)
    try:
        tables, footer = content.tables(result), content.footer(result)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise KontextError(
            f"{path} is not a result of this benchmark ({in_words(fault)}): run the benchmark again"
        ) from None
    return [*([content.title] if content.title else []), *(table.markdown() for table in tables), footer]
