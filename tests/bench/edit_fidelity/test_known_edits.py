"""What scenes and data sets know of their edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def drawn(number: int, hole: bool = False) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 4), np.uint8)
    pixels[..., 3] = 255
    if hole:
        pixels[4:12, 8 * number : 8 * number + 8, 3] = 0
    return Image.fromarray(pixels) if hole else Image.fromarray(pixels[..., :3])


@pytest.fixture
def magicbrush(tmp_path: Path) -> Path:
    """Sessions 1 with turns 1, 2, 3; 2 with turn 1; 3 with turns 1 and 3; 4 whose first picture is damaged."""
    datasets = pytest.importorskip("datasets")
    turns = [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 3)]
    columns: dict[str, list[Any]] = {
        "img_id": [str(session) for session, _ in turns],
        "turn_index": [turn for _, turn in turns],
        "source_img": [drawn(n) for n in range(6)],
        "mask_img": [drawn(turn - 1, hole=True) for _, turn in turns],
        "instruction": [f"change 'A' to 'B{n}'" for n in range(6)],
        "target_img": [drawn(n) for n in range(6)],
    }
    data = datasets.Dataset.from_dict(columns)
    for name in ("source_img", "mask_img", "target_img"):
        data = data.cast_column(name, datasets.Image())
    data.to_parquet(tmp_path / "dev-00000-of-00001.parquet")
    return tmp_path


def test_masks_turns_and_quoted_text_of_magicbrush(magicbrush: Path) -> None:
    """By the library that its publisher writes with."""
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
    drawn(0).save(tmp_path / "one.png")
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
