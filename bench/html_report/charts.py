"""Plots as SVG inside the page: drawn by matplotlib, coloured by the page's style sheet.

A chart is drawn twice, for wide screens and for phones, and the style sheet shows one of them. Its numbers follow as a
table.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...export.cli.figures import new_figure
from ..report import Table
from .markup import Html, details, element, joined, table_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, GRID, CARD = "#1b1b22", "#5c5c6b", "#d9d9e0", "#fffffe"
SERIES = ("#3b5bdb", "#c2560c", "#0b7a6f", "#8a3ab9", "#b3264a", "#6b7300", "#7a5c44", "#1976a3")
VARIABLES = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    GRID: "var(--line)",
    CARD: "var(--card)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES, 1)},
}
"""Colour in matplotlib → colour in the page, which depends on the theme."""

PIXEL = 1 / 72
"""In inches. matplotlib's SVG counts in points, which are shown as CSS pixels."""

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "patch.linewidth": 0,
}


@dataclass(frozen=True)
class Key:
    """A line of a chart's legend."""

    label: str
    colour: str
    shape: str = "line"
    """line, dash, bar, circle or square."""


@dataclass(frozen=True)
class Chart:
    """A plot of a result. `draw(figure, narrow)` draws it; `says` is its text for those who cannot see it."""

    name: str
    title: str
    says: str
    table: Table
    draw: Callable[[Any, bool], None]
    height: int = 300
    keys: Sequence[Key] = field(default_factory=tuple)
    note: str = ""
    full: bool = False
    """Over the whole width of the page, not beside another chart."""


def chart_html(chart: Chart) -> Html:
    """The chart in both widths, its legend, and its numbers."""
    wide = svg(chart, (1060 if chart.full else 510, chart.height), narrow=False)
    narrow = svg(chart, (310, max(chart.height, 260)), narrow=True)
    legend = element("ul", *(element("li", swatch(key), key.label) for key in chart.keys), class_="legend")
    return element(
        "figure",
        element("figcaption", chart.title),
        legend if chart.keys else "",
        element("div", wide, class_="wide"),
        element("div", narrow, class_="narrow"),
        element("p", chart.note, class_="note") if chart.note else "",
        details("Numbers", table_html(chart.table, f"{chart.title}: numbers")),
        class_="chart full" if chart.full else "chart",
    )


def swatch(key: Key) -> Html:
    colour = VARIABLES[key.colour]
    shapes = {
        "line": element("path", d="M0 6H16", stroke=colour, stroke_width=2.5),
        "dash": element("path", d="M0 6H16", stroke=colour, stroke_width=2.5, stroke_dasharray="4 2"),
        "bar": element("rect", x=2, y=0, width=12, height=12, rx=2, fill=colour),
        "circle": element("circle", cx=8, cy=6, r=4.5, fill=colour),
        "square": element("rect", x=4, y=2, width=8, height=8, fill=colour),
    }
    return element("svg", shapes[key.shape], viewBox="0 0 16 12", aria_hidden="true")


def svg(chart: Chart, size: tuple[int, int], *, narrow: bool) -> Html:
    """Draws a chart of `size` in CSS pixels."""
    figure = new_figure((1, 1))  # raises the error about a missing matplotlib
    import matplotlib

    name = f"{chart.name}-{'narrow' if narrow else 'wide'}"
    settings: Any = {**SETTINGS, "svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that its font lacks: the text is shown in the page's
        figure = new_figure((size[0] * PIXEL, size[1] * PIXEL))
        chart.draw(figure, narrow)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return themed(file.getvalue(), name, chart.says)


SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def themed(text: str, name: str, says: str) -> Html:
    """matplotlib's SVG for inside a page: colours by variables, no style attributes, ids that begin with `name`."""
    root = ElementTree.fromstring(text)
    referred = set(re.findall(r"(?:#)([\w.-]+)", " ".join(references(root))))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(SVG) in ("metadata", "style") or not isinstance(child.tag, str):
                parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.removeprefix(SVG)
        attributes = {**node.attrib, **presentation(node.attrib.get("style", ""))}
        attributes.pop("style", None)
        node.attrib.clear()
        tip = attributes.get("id", "")
        if tip.startswith(TIP):
            title = ElementTree.Element("title")
            title.text = tip.removeprefix(TIP)
            node.insert(0, title)
        if attributes.get("id") in referred:
            attributes["id"] = f"{name}-{attributes['id']}"
        else:
            attributes.pop("id", None)
        for key, value in attributes.items():
            value = re.sub(r"(^|url\()#([\w.-]+)", rf"\1#{name}-\2", value) if key in LINKS else value
            node.attrib["href" if key == HREF else key] = VARIABLES.get(value, value)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": says}
    return Html(re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")))


TIP = "tip:"
"""What ids begin with whose rest is shown over a mark: `artist.set_gid(TIP + words)`."""

LINKS = (HREF, "clip-path")


def references(root: ElementTree.Element) -> list[str]:
    return [node.attrib[key] for node in root.iter() for key in LINKS if key in node.attrib]


def presentation(style: str) -> dict[str, str]:
    """A style attribute as presentation attributes, which a page's security policy lets through."""
    found = {}
    for part in style.split(";"):
        key, _, value = (word.strip() for word in part.partition(":"))
        if key == "font":  # a shorthand, which is no attribute; the family is the page's
            found["font-size"] = next(iter(re.findall(r"[\d.]+px", value)), "12px")
        elif key and not key.startswith("font-family"):
            found[key] = value
    return found


# -- what charts have in common --


def tipped(artist: Any, words: str) -> None:
    """Shows `words` when the pointer is over the artist."""
    artist.set_gid(TIP + words)


def bars(
    axes: Axes,
    labels: Sequence[str],
    sides: Sequence[Sequence[float | None]],
    colours: Sequence[str],
    unit: str,
) -> None:
    """Horizontal bars, a group for each label from the top, each with its value at its end; None has no bar."""
    thickness = 0.8 / len(sides)
    most = max((value for side in sides for value in side if value is not None), default=1) or 1
    for number, (side, colour) in enumerate(zip(sides, colours, strict=True)):
        for row, value in enumerate(side):
            if value is None:
                continue
            height = row - 0.4 + (number + 0.5) * thickness
            axes.barh(height, value, thickness * 0.86, color=colour)
            shown = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
            axes.annotate(
                f"{shown}{unit}",
                (value, height),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=11,
                color=INK,
            )
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, most * 1.22)
    axes.set_yticks(range(len(labels)), [shortened(label) for label in labels])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def shortened(label: str, most: int = 26) -> str:
    """A label that leaves room for the plot."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def rows_of(charts: Sequence[Chart]) -> Html:
    """Charts side by side where there is room; the last of an odd number over the whole width."""
    halves = sum(not chart.full for chart in charts)
    if halves % 2:
        charts = [*charts[:-1], replace(charts[-1], full=True)]
    return element("div", joined(map(chart_html, charts)), class_="charts")
