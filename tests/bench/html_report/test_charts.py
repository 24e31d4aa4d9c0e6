"""matplotlib's SVG in a page: themed, named apart, without styles, and the same every time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from kontext.bench.html_report.charts import INK, SERIES, VARIABLES, Chart, Key, bars, chart_html, svg, tipped
from kontext.bench.report import Table


def draw(figure: Any, narrow: bool) -> None:
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], "o-", color=SERIES[1])
    (mark,) = axes.plot([1], [3], "s", color=SERIES[0])
    tipped(mark, "a < b & $c_1$")
    axes.set_xlabel("bits & $x$")


CHART = Chart(
    "one", "Title", 'says "this"', Table(["a", "b"], [["<x>", "1"]]), draw, keys=[Key("ours", SERIES[0])]
)


def test_themed() -> None:
    text = svg(CHART, (510, 300), narrow=False)
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert root.attrib == {"viewBox": "0 0 510 300", "role": "img", "aria-label": 'says "this"'}
    assert "style" not in text
    assert not re.search(r"#[0-9a-f]{6}\b", text)  # every colour is the page's
    assert {"currentColor", "var(--soft)", "var(--line)", "var(--s1)", "var(--s2)"} <= set(
        re.findall(r'(?:fill|stroke)="([^"]+)"', text)
    ) | {"currentColor"}
    assert [node.text for node in root.iter("title")] == ["a < b & $c_1$"]
    assert "bits & $x$" in [node.text for node in root.iter("text")]  # text, not outlines, and no mathematics


def test_ids_are_unique_and_led_to() -> None:
    page = chart_html(CHART) + chart_html(Chart(**{**vars(CHART), "name": "two"}))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 4
    links = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {one or other for one, other in links} == set(ids)


def test_the_numbers_are_a_table() -> None:
    page = chart_html(CHART)
    assert "<details><summary>Numbers</summary>" in page
    assert "&lt;x&gt;" in page
    assert page.count("<svg") == 3  # wide, narrow, and the legend's


def test_the_same_every_time() -> None:
    assert svg(CHART, (510, 300), narrow=True) == svg(CHART, (510, 300), narrow=True)


def test_bars_have_their_length_and_value() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    bars(axes, ["a", "b"], [[10.0, None], [5.0, 2000.0]], SERIES[:2], " ms")
    assert sorted(bar.get_width() for bar in axes.patches) == [5, 10, 2000]
    assert sorted(text.get_text() for text in axes.texts) == ["10 ms", "2000 ms", "5 ms"]


def test_colours_are_variables_of_the_style_sheet() -> None:
    from kontext.bench.html_report.page import STATIC

    sheet = (STATIC / "report.css").read_text()
    for variable in set(VARIABLES.values()) - {VARIABLES[INK]}:
        assert f"{variable.removeprefix('var(').removesuffix(')')}: light-dark(" in sheet
