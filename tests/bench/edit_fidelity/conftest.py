"""A set of edits in MagicBrush's layout, written by the library that its publisher writes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def drawn(number: int, hole: bool = False) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 4), np.uint8)
    pixels[..., 3] = 255
    if hole:
        pixels[4:12, 8 * number : 8 * number + 8, 3] = 0
    return Image.fromarray(pixels) if hole else Image.fromarray(pixels[..., :3])


@pytest.fixture
def magicbrush(tmp_path: Path) -> Path:
    """Session 1 with turns 1, 2, 3; session 2 with turn 1; session 3 with turns 1 and 3."""
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
