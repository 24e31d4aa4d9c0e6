"""A report's sections: for each result its charts, its tables and its footer; pictures first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ...errors import KontextError
from ..fidelity import tables
from ..pictures import OutsideError
from ..registry import Benchmark, Result
from ..report import Table
from ..result_file import in_words
from . import fidelity_charts, other_charts
from .charts import Chart, rows_of
from .edits import Edit, read_edits
from .gallery import gallery_html
from .headlines import headlines_html
from .loaded import DEMO, SENSITIVITY, Loaded, printable
from .markup import Html, details, element, joined, prose, table_html
from .shrinking import MOST_BYTES, shrink

FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)
"""What rendering a result of another form ends in."""

TITLES = {
    "cold start": "Cold start",
    "success of edits": "Success of edits",
    "fullsize": "Export at full size",
    "fullsize edit": "An edit at full size",
    "serving-rest": "REST endpoint",
    "quantspeed": "Speed of quantized steps",
    "methods": "Quantization methods",
    "edit-fidelity": "What edits keep",
    "batch": "Lists of jobs",
    "loras": "LoRAs",
    "vram-fit": "Cards that bundles run on",
    "plans": "Plans for cards",
    "plan-fidelity": "Predicted fidelity of plans",
    "cards": "The fastest recipe on a card",
    "gpu": "On a GPU",
    SENSITIVITY: "Sensitivity of layers",
    DEMO: "Demo",
}
"""What was measured → the section's title, where that is not the word itself."""


@dataclass(frozen=True)
class Section:
    """A part of the page; `anchor` is unique in it."""

    anchor: str
    title: str
    body: Html


@dataclass
class Pictures:
    """What the report says of its pictures: how many edits are shown of how many, and what is missing."""

    most: int
    shown: int = 0
    missing: list[str] = field(default_factory=list)
    """A line for each edit."""
    refused: list[str] = field(default_factory=list)
    """A line for each result whose pictures are not read."""


def make_sections(results: Sequence[Loaded], pictures: Pictures) -> list[Section]:
    """Raises KontextError for a result that its benchmark, as it is in this version, cannot show."""
    galleries = [
        part
        for number, each in enumerate(results)
        for part in checked(each, gallery, number, results, pictures)
    ]
    sections = [
        part for number, each in enumerate(results) for part in checked(each, section, number, results)
    ]
    return [*galleries, *sections]


def first_lines(results: Sequence[Loaded]) -> Html:
    """What comes before the sections. Raises KontextError as `make_sections`."""
    try:
        return headlines_html(results)
    except FAULTS as fault:
        raise KontextError(
            f"one of the results is not of this version's kontext-bench ({in_words(fault)}): run it again"
        ) from None


def checked(each: Loaded, make: Callable[..., list[Section]], *words: object) -> list[Section]:
    try:
        return make(each, *words)
    except FAULTS as fault:
        raise KontextError(
            f"{each.path} is not a result of this version's kontext-bench ({in_words(fault)}): run the benchmark again"
        ) from None


def titled(each: Loaded, results: Sequence[Loaded]) -> str:
    """A section's title, with the file's name where several results are of the same kind."""
    title = TITLES.get(each.what, each.what.capitalize())
    again = sum(other.what == each.what for other in results) > 1
    return f"{title}: {each.path.name}" if again else title


def gallery(each: Loaded, number: int, results: Sequence[Loaded], pictures: Pictures) -> list[Section]:
    """The edits with pictures of a result, the worst of them."""
    result = each.result
    if each.what == SENSITIVITY:
        return []
    names = tables.titles(result) if each.what == "fidelity" and result.get("pictures") else {}
    try:
        edits = read_edits(result, each.path, names)
    except OutsideError as fault:
        pictures.refused.append(str(fault))
        return []
    if not edits:
        return []
    chosen = sorted(sorted(edits, key=Edit.worst)[: pictures.most], key=lambda edit: edit.number)
    sharing = sum("pictures" in other.result for other in results if other.what != SENSITIVITY)
    found = shrink(chosen, MOST_BYTES // sharing)
    pictures.shown += len(found.edits)
    pictures.missing += found.missing
    if not found.edits:
        return []
    notes = []
    if each.what == DEMO:
        notes.append(
            f"{len(edits)} edits of {result['steps']} steps in {result['seconds']:.0f} s, by {result['model']} with "
            f"{result['precision']} weights. Drag the slider, or use the arrow keys."
        )
    if len(chosen) < len(edits):
        notes.append(f"The {len(chosen)} worst of {len(edits)} edits.")
    if found.missing:
        notes.append(f"{len(found.missing)} edits are left out: their pictures are missing.")
    title = "Edits" if each.what == "fidelity" else titled(each, results)
    if title == "Edits" and sum(other.what == "fidelity" for other in results) > 1:
        title = f"Edits: {each.path.name}"
    body = joined(
        [
            element("p", " ".join(notes), class_="note") if notes else "",
            gallery_html(found, f"edits-{number}"),
        ]
    )
    return [Section(f"edits-{number}", title, body)]


def section(each: Loaded, number: int, results: Sequence[Loaded]) -> list[Section]:
    anchor, title = f"result-{number}", titled(each, results)
    if each.what == DEMO:
        return []
    if each.what == SENSITIVITY:
        return [Section(anchor, title, sensitivity_body(each.path, anchor))]
    assert each.entry is not None  # `load` lets through nothing else
    benchmark = cast(Benchmark, each.entry.load())
    shown = benchmark.tables(each.result)
    more = more_tables(benchmark, each)
    body = joined(
        [
            element("p", f"{each.entry.summary[0].upper()}{each.entry.summary[1:]}.", class_="lead"),
            charts_html(charts_of(each, results), anchor),
            *(table_html(table, title) for table in shown),
            *(
                [details("More figures", *(table_html(table, f"{title}: more") for table in more))]
                if more
                else []
            ),
            footer_html(benchmark.footer(each.result)),
        ]
    )
    return [Section(anchor, title, body)]


def more_tables(benchmark: Any, each: Loaded) -> list[Table]:
    """Tables that a benchmark has beside its main one."""
    if each.what == "fidelity":
        return [*tables.detail_tables(each.result), tables.categories_table(each.result)]
    return list(benchmark.work_tables(each.result)) if each.what == "approximations" else []


def charts_of(each: Loaded, results: Sequence[Loaded]) -> list[Chart]:
    result = each.result
    if each.what == "fidelity":
        speeds = [other.result for other in results if other.what == "quantspeed"]
        return [
            *fidelity_charts.size_charts(result),
            *(fidelity_charts.speed_chart(result, speeds[0]) if speeds else []),
            *fidelity_charts.steps_chart(result),
            *fidelity_charts.categories_chart(result),
        ]
    makers: dict[str, Callable[[Result], list[Chart]]] = {
        "latency": other_charts.latency_charts,
        "cold start": other_charts.start_charts,
        "quantspeed": other_charts.quantspeed_charts,
        "success of edits": other_charts.success_charts,
        "serving": other_charts.serving_charts,
    }
    return makers[each.what](result) if each.what in makers else []


def charts_html(charts: Sequence[Chart], anchor: str) -> Html:
    """The charts with names that are unique in the page."""
    if not charts:
        return Html("")
    return rows_of([dataclasses.replace(chart, name=f"{anchor}-{chart.name}") for chart in charts])


def footer_html(text: str) -> Html:
    """A benchmark's footer, a paragraph a line."""
    return element("footer", *(element("p", prose(line)) for line in text.splitlines() if line))


def sensitivity_body(path: Path, anchor: str) -> Html:
    # Imported here: they need PyTorch, which takes a second.
    from ...quant.sensitivity import METHODS, Sensitivity
    from .sensitivity_charts import sensitivity_charts, sum_tables

    report = Sensitivity.load(path)
    report = dataclasses.replace(report, model=printable(report.model), layers=printable(report.layers))
    count = sum(map(len, report.layers.values()))
    lead = f"{report.model}: {count} layers in {', '.join(report.options)}; {METHODS[report.method]}."
    return joined(
        [
            element("p", lead, class_="lead"),
            charts_html(sensitivity_charts(report), anchor),
            *(table_html(table, "Whether errors add up") for table in sum_tables(report)),
        ]
    )
