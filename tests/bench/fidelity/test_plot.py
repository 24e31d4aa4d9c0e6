"""The plot of fidelity: its labels do not overlap, its axis is broken where there is nothing, and it is a PNG."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from kontext.bench.fidelity.plot import draw_fidelity, panels, points, spread


def entry(bits: float | None, snr: float, precision: str = "int4") -> dict[str, Any]:
    return {"precision": precision, "bits_per_weight": bits, "velocity_snr": snr}


RESULT: dict[str, Any] = {
    "model": "kontext-tiny",
    "bundles": {"a": entry(4.5, 22.0), "b": entry(8.3, 36.0, "int8"), "same": entry(8.0, 200.0, "x")},
    "peers": {"gguf-q4_0": entry(4.5, 19.5, "Q4_0"), "unknown": entry(None, 20.0, "y")},
}


def test_points_are_what_has_bits_and_an_error() -> None:
    assert {point.label for point in points(RESULT)} == {"kontext int4", "kontext int8", "gguf-q4_0"}


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
