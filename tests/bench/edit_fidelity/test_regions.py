"""Regions from masks as data sets have them, and from what a picture shows."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from kontext.bench.edit_fidelity.regions import at_size, changed_part, masked_part

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
HOLE = np.zeros((32, 48), bool)
HOLE[4:20, 6:30] = True


def test_magicbrush_s_transparent_part_is_edited() -> None:
    """Its mask is the picture with a hole, whose colours are no matter."""
    for behind in (0, 255, 77):
        pixels = np.dstack([np.where(HOLE[..., None], behind, PICTURE), np.where(HOLE, 0, 255)])
        found = masked_part(Image.fromarray(pixels.astype(np.uint8)))
        assert found is not None
        assert np.array_equal(found, HOLE)


def test_the_white_part_of_black_and_white_is_edited() -> None:
    for mode in ("L", "1", "RGB", "RGBA", "P"):
        found = masked_part(Image.fromarray(HOLE.astype(np.uint8) * 255).convert(mode))
        assert found is not None
        assert np.array_equal(found, HOLE)


@pytest.mark.parametrize("pixels", [PICTURE, np.where(HOLE[..., None], 0, PICTURE), np.zeros((32, 48, 3))])
def test_other_masks_say_nothing(pixels: np.ndarray) -> None:
    """A picture whose hole has become black with its transparency lost; and nothing to edit."""
    assert masked_part(Image.fromarray(pixels.astype(np.uint8))) is None


def test_what_changed_visibly_and_a_rim() -> None:
    source = np.full((128, 128, 3), 120, np.uint8)
    output = source + np.random.default_rng(1).integers(
        0, 3, source.shape, np.uint8
    )  # an autoencoder's traces
    output[30:60, 40:90] = (200, 40, 40)
    output[100, 10] = 255  # a single pixel
    changed = changed_part(Image.fromarray(source), Image.fromarray(output))
    rows, columns = np.nonzero(changed)
    assert changed[30:60, 40:90].all()
    assert 30 - 6 <= rows.min() < 30 <= 60 <= rows.max() <= 60 + 6
    assert 40 - 6 <= columns.min() < 40 <= 90 <= columns.max() <= 90 + 6
    same = changed_part(Image.fromarray(source), Image.fromarray(source))
    assert not same.any()


def test_resized_regions_cover_every_part() -> None:
    one = np.zeros((40, 60), bool)
    one[7, 11] = True
    small = at_size(one, (30, 20))
    assert small.shape == (20, 30)
    assert small[3, 5]
    assert small.sum() == 1
    large = at_size(one, (120, 80))
    assert large[14:16, 22:24].all()
    assert large.sum() <= 16
    assert at_size(one, (60, 40)) is one
