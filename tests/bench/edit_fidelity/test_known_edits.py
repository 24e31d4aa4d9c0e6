"""What scenes and data sets know of their edits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from kontext.bench.cases import scene_cases
from kontext.bench.edit_fidelity.known_edits import data_edits, scene_edits
from kontext.errors import KontextError


def test_scenes_are_those_of_the_other_benchmarks() -> None:
    edits, cases = scene_edits(2, 5), scene_cases(2, 5)
    assert [(edit.case.key, edit.case.prompt) for edit in edits] == [
        (case.key, case.prompt) for case in cases
    ]
    for edit in edits:
        kind = edit.case.category
        region = edit.region()
        assert region is not None
        assert region.origin == "scene"
        assert (edit.wanted is not None) == (kind == "text")
        assert edit.has_character == (kind == "character")
        if kind in ("effect", "style"):
            assert region.changed.all()
        if kind in ("recolour", "add", "remove", "move", "text"):
            assert region.changed.mean() < 0.25


def test_masks_turns_and_quoted_text_of_magicbrush(magicbrush: Path) -> None:
    edits, chains = data_edits(magicbrush, 100, 100, 0, "en")
    assert [edit.wanted for edit in edits] == [f"B{n}" for n in range(6)]
    for edit, turn in zip(edits, (1, 2, 3, 1, 1, 3), strict=True):
        region = edit.region()
        assert region is not None
        assert region.origin == "mask"
        rows, columns = np.nonzero(region.changed)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 11, 8 * turn - 8, 8 * turn - 1)
    assert [[edit.case.key for edit in chain] for chain in chains] == [["1-1", "1-2", "1-3"]]
    assert data_edits(magicbrush, 2, 0, 0, "en")[1] == []


def test_sets_without_masks_and_turns(tmp_path: Path) -> None:
    Image.new("RGB", (32, 24), "green").save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("make it blue")
    (edit,), chains = data_edits(tmp_path, 100, 100, 0, "en")
    assert edit.region() is None
    assert edit.wanted is None
    assert not edit.has_character
    assert chains == []


def test_a_damaged_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.png").write_bytes(b"no picture")
    (tmp_path / "one.txt").write_text("make it blue")
    with pytest.raises(KontextError, match="has no edits that can be used"):
        data_edits(tmp_path, 100, 100, 0, "en")
    assert capsys.readouterr().err.startswith("skipped: one: ")
