"""The contact sheet: every picture is on it, in its place and with its proportions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kontext.tiny.contact import contact_sheet

RED = Image.new("RGB", (128, 128), (255, 0, 0))
BLUE = Image.new("RGB", (200, 100), (0, 0, 255))


def area(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.abs(np.asarray(sheet).astype(int) - colour).sum(axis=2) < 12).sum())


def test_pictures_keep_their_proportions() -> None:
    sheet = contact_sheet([(RED, BLUE, "make it blue"), (None, RED, "a red square")], columns=2, side=100)
    assert area(sheet, (255, 0, 0)) == 2 * 100 * 100
    assert area(sheet, (0, 0, 255)) == 100 * 50


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_lines_follow_columns(count: int) -> None:
    one = contact_sheet([(RED, RED, "x")], columns=1)
    sheet = contact_sheet([(RED, RED, "a prompt " * 30)] * count, columns=3)
    lines = -(-count // 3)
    assert (sheet.height > one.height) == (lines > 1)
    assert area(sheet, (255, 0, 0)) == count * 2 * 160 * 160


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])
