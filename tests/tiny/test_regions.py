"""Regions of edits: against scenes whose pixels are known, and for every kind of edit."""

from __future__ import annotations

import numpy as np
import pytest

from kontext.tiny.edits import KINDS, Edit, Instruction, sample_edit
from kontext.tiny.regions import edited_regions, untouched
from kontext.tiny.scenes import Scene, SceneObject, render

BEFORE = Scene("white", (SceneObject("square", "red", "top left"),))


def edit(kind: str, target: Scene) -> Edit:
    return Edit(kind, Instruction(""), BEFORE, target, ())


def test_a_new_object_changes_its_place_alone() -> None:
    """A square at the bottom right is drawn 32 pixels wide around (104, 104): 88 to 119, and 2 pixels around."""
    added = Scene("white", (*BEFORE.objects, SceneObject("square", "blue", "bottom right")))
    regions = edited_regions(edit("add", added))
    rows, columns = np.nonzero(regions.changed)
    for places in (rows, columns):
        assert (places.min(), places.max()) == (86, 121)
    assert regions.changed.sum() == 36**2
    assert np.array_equal(regions.kept, ~regions.changed)
    assert np.array_equal(untouched(edit("add", added)), regions.kept)


def test_a_new_background_keeps_the_object() -> None:
    other = edit("background", Scene("green", BEFORE.objects))
    regions = edited_regions(other)
    assert regions.kept[24, 24]
    assert not regions.kept[64, 64]
    assert np.array_equal(regions.changed, ~regions.kept)
    inside = untouched(other)
    assert inside[24, 24]
    assert 20**2 < inside.sum() < regions.kept.sum()


def test_effects_change_everything() -> None:
    regions = edited_regions(edit("effect", Scene("white", BEFORE.objects, effect="negative")))
    assert regions.changed.all()
    assert not regions.kept.any()


@pytest.mark.parametrize("kind", KINDS)
def test_untouched_pixels_are_the_same_before_and_after(kind: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        each = sample_edit(rng, "test", kind)
        assert each.source is not None
        region = untouched(each)
        before, after = (render(scene).astype(int) for scene in (each.source, each.target))
        assert np.abs(before - after)[region].max(initial=0) <= 24
        if kind in ("recolour", "add", "remove", "move", "text"):
            assert region.mean() > 0.75
