"""Sizes: what is refused, and what is offered instead."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.runtime import sizes
from kontext.runtime.sampler_entry import SamplerEntry

SETTINGS = SamplerEntry(28, 2.5, 0.5, 1.15, 256, 4096, 16, ((64, 160), (96, 176), (128, 128)))


@pytest.mark.parametrize(
    ("size", "offered"),
    [
        ((100, 100), "96x96"),
        ((8, 16), "16x16"),
        ((1, 3), "16x16"),
        ((16, 24), "16x32"),
        ((1000, 23), "1008x16"),
    ],
)
def test_the_nearest_size_is_offered(size: tuple[int, int], offered: str) -> None:
    with pytest.raises(KontextError) as error:
        sizes.checked_size(size, SETTINGS)
    assert str(error.value) == (
        f"size {size[0]}x{size[1]}: both sides must be multiples of 16; the nearest is {offered}"
    )


@pytest.mark.parametrize("size", [(0, 0), (0, 16), (16, 0), (-16, -16), (16, -5)])
def test_sizes_that_are_not_above_0(size: tuple[int, int]) -> None:
    with pytest.raises(KontextError, match=f"size {size[0]}x{size[1]}: width and height must be above 0"):
        sizes.checked_size(size, SETTINGS)


@pytest.mark.parametrize("size", [(16, 16), (512, 512), (1056, 256), (1072, 256), (16, 18432)])
def test_sizes_up_to_sixteen_times_the_largest_preferred_one(size: tuple[int, int]) -> None:
    """(96, 176) has 16 896 pixels, and 16 times as many are 270 336."""
    if size[0] * size[1] <= 16 * 96 * 176:
        assert sizes.checked_size(size, SETTINGS) == size
    else:
        with pytest.raises(KontextError, match=r"more than 16 times .*: \d+x\d+ is usual"):
            sizes.checked_size(size, SETTINGS)


def test_a_size_of_an_aspect_and_an_area() -> None:
    assert sizes.similar_size((1920, 1080), (1024, 1024), 16) == (1360, 768)
    assert sizes.similar_size((1, 5000), (64, 64), 16) == (16, 4528)


@pytest.mark.parametrize(("size", "offered"), [((99999, 99999), "128x128"), ((40000, 100000), "64x160")])
def test_sizes_that_are_too_large_come_with_one_that_is_taken(size: tuple[int, int], offered: str) -> None:
    with pytest.raises(KontextError, match=f"16 times as large as this model's pictures: {offered} is usual"):
        sizes.checked_size(size, SETTINGS)
