"""The serving benchmark's plot is SVG with every point inside it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from kontext.bench.serving import plot


def test_four_lines_inside_the_picture() -> None:
    levels = [
        {
            "concurrency": callers,
            "per_second": rate,
            "p50": 0.1 * callers,
            "p95": 0.3 * callers,
            "p99": 0.4 * callers,
        }
        for callers, rate in ((1, 5.5), (2, 7.0), (4, 7.5))
    ]
    root = ElementTree.fromstring(plot.load_svg({"levels": levels}))
    lines = [each for each in root.iter() if each.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3, 3, 3]
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= plot.WIDTH
            assert 0 <= y <= plot.HEIGHT
    texts = [each.text for each in root.iter() if each.tag.endswith("text")]
    assert {"1", "2", "4", "concurrent callers", "edits/s (left)", "p99 in s (right)"} <= set(texts)


@pytest.mark.parametrize(
    ("value", "top"), [(0.9, 1), (1, 1), (1.1, 2), (3, 4), (30, 40), (81, 100), (0.05, 0.08)]
)
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    assert plot.round_up(value) == pytest.approx(top)
