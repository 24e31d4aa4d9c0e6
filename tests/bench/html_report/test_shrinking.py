"""Pictures of a report: heat maps by arithmetic, and a budget that holds whatever the pictures are."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.bench.html_report.edits import Edit, Output, read_edits
from kontext.bench.html_report.shrinking import (
    LEVELS,
    colours,
    difference,
    heat_map,
    heat_scale,
    shrink,
    size_of,
)
from kontext.errors import KontextError


def edits_of(file: Path) -> list[Edit]:
    return read_edits(json.loads(file.read_text()), file, {})


def test_a_heat_map_shows_the_largest_difference() -> None:
    reference = np.full((2, 2, 3), 100, np.uint8)
    ours = reference.copy()
    ours[0, 1] = (100, 84, 101)  # 16 of 64: half as bright
    ours[1, 0] = (0, 100, 100)  # more than 64
    found = np.asarray(heat_map(difference(Image.fromarray(ours), Image.fromarray(reference)), 64))
    ramp = colours()
    assert found[0, 0].tolist() == found[1, 1].tolist() == ramp[0].tolist()
    assert found[0, 1].tolist() == ramp[127].tolist()
    assert found[1, 0].tolist() == ramp[255].tolist()


@pytest.mark.parametrize(("psnr", "scale"), [(60, 4), (42, 16), (30, 64), (10, 255), (None, 4)])
def test_the_scale_follows_the_worst_edit(psnr: float | None, scale: int) -> None:
    """Four times the root mean square: 255 / 10^(42/20) = 2.03 levels at 42 dB."""
    metrics = {} if psnr is None else {"psnr": psnr}
    edit = Edit(0, "a", "", "", Path(), None, None, (Output("x", "x", "x.png", metrics),))
    assert heat_scale([edit]) == scale


def test_pictures_are_whole_where_they_fit(fidelity: Path) -> None:
    found = shrink(edits_of(fidelity))
    assert (len(found.edits), found.side, found.missing) == (6, LEVELS[0][0], [])
    first, second = found.edits[:2]
    assert second.source is None
    assert set(first.heat) == set(first.outputs) == {"int8", "int4"}
    assert first.reference is not None
    assert (first.reference.width, first.reference.height) == (96, 96)
    data = base64.b64decode(first.reference.uri.removeprefix("data:image/webp;base64,"))
    shown = Image.open(io.BytesIO(data), formats=["WEBP"]).convert("RGB")
    original = Image.open(fidelity.parent / "pictures/reference/0000.png", formats=["PNG"])
    assert np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean() < 4


@pytest.mark.parametrize("budget", [200_000, 40_000])
def test_a_budget_is_kept(fidelity: Path, budget: int) -> None:
    found = shrink(edits_of(fidelity), budget)
    total = sum(map(size_of, found.edits))
    assert budget * 0.2 < total <= budget
    assert len(found.edits) == 6


def test_what_is_missing_is_named(fidelity: Path, tmp_path: Path) -> None:
    edits = edits_of(fidelity)
    lost = Edit(**{**vars(edits[0]), "folder": tmp_path})
    found = shrink([lost, *edits[1:]])
    assert len(found.edits) == 5
    assert (
        found.missing == [f"{tmp_path / 'pictures/reference/0000.png'} does not exist"]
        or "does not exist" in found.missing[0]
    )


@pytest.mark.parametrize(
    "pictures", [3, {}, {"folder": "x"}, {"folder": 1, "edits": []}, {"folder": "x", "edits": [{}]}]
)
def test_other_names_are_refused(pictures: object) -> None:
    with pytest.raises(KontextError, match="does not name its pictures"):
        read_edits({"pictures": pictures}, Path("a.json"), {})
