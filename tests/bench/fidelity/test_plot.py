"""The plot of fidelity: its labels do not overlap, its axis is broken where there is nothing, and it is a PNG."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from kontext.bench.fidelity.plot import draw_fidelity, draw_floors, panels, points, spread, styles


def entry(bits: float | None, snr: float, precision: str = "int4") -> dict[str, Any]:
    return {"precision": precision, "bits_per_weight": bits, "velocity_snr": snr}


RESULT: dict[str, Any] = {
    "model": "kontext-tiny",
    "bundles": {
        "a": entry(4.5, 22.0) | {"scheme": "W4A16", "intervals": {"velocity_snr": [20.0, 23.5]}},
        "b": entry(8.3, 36.0, "int8") | {"scheme": "W8A8 per token"},
        "same": entry(8.0, 200.0, "x"),
    },
    "peers": {
        "gguf-q4_0": entry(4.5, 19.5, "Q4_0") | {"scheme": "W4A16"},
        "unknown": entry(None, 20.0, "y"),
    },
    "floors": {
        "b-inputs-alone": entry(8.3, 37.0, "int8") | {"activations": ["int8"], "part": "inputs"},
        "b-weights-alone": entry(8.3, 200.0, "int8") | {"activations": ["int8"], "part": "weights"},
    },
}


def test_points_are_what_has_bits_and_an_error() -> None:
    assert {point.label for point in points(RESULT)} == {"kontext int4", "kontext int8", "gguf-q4_0"}


def test_a_class_has_one_colour_and_marker() -> None:
    every = points(RESULT)
    drawn = styles(every)
    assert list(drawn) == ["W8A8 per token", "W4A16"]
    assert len({(style.colour, style.marker) for style in drawn.values()}) == 2
    ours = next(point for point in every if point.label == "kontext int4")
    assert (ours.low, ours.snr, ours.high) == (20.0, 22.0, 23.5)
    assert [point.ours for point in every] == [True, True, False]


def test_floors_are_lines_where_their_bundle_is() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = list(figure.subplots(1, 2))
    draw_floors(axes, panels(points(RESULT)), RESULT)
    assert [len(axis.lines) for axis in axes] == [0, 1]  # the other floor is as good as nothing lost
    assert list(axes[1].lines[0].get_ydata()) == [37.0, 37.0]
    assert axes[1].texts[0].get_text() == "INT8 inputs alone"


def test_the_axis_is_broken_where_there_is_nothing() -> None:
    low, high = panels(points(RESULT))
    assert [point.bits for point in low] == [4.5, 4.5]
    assert [point.bits for point in high] == [8.3]


@pytest.mark.parametrize(
    "heights", [[0.0, 1.0, 2.0, 50.0], [5.0, 5.0, 5.0], [0.0, 14.0, 16.0, 40.0, 41.0], [7.0], []]
)
def test_labels_are_apart_and_stay_near(heights: list[float]) -> None:
    moved = spread(heights, 15)
    assert all(after - before >= 15 - 1e-9 for before, after in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(heights))
    assert all(abs(new - old) <= 15 * len(heights) for new, old in zip(moved, heights, strict=True))


def test_labels_far_apart_are_not_moved() -> None:
    assert spread([0, 20, 60], 15) == [0, 20, 60]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    draw_fidelity(RESULT, path)
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
    assert [each.name for each in path.parent.iterdir()] == ["plot.png"]
