"""Cached masks."""

from __future__ import annotations

import pytest

from kontext.tiny import draw


def test_cached_masks_cannot_be_written_to() -> None:
    outer, inner = draw.shape_masks("heart", 36, draw.OUTLINE)
    with pytest.raises(ValueError):
        outer[0, 0] = 1
    with pytest.raises(ValueError):
        inner[0, 0] = 1
