"""Requests: every default filled in, one row a picture, and the rows that run together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime.request import Request, build_request
from kontext.runtime.sampler_entry import SamplerEntry

SIZES = ((64, 160), (96, 176), (128, 128), (176, 96))
SETTINGS = SamplerEntry(28, 2.5, 0.5, 1.15, 256, 4096, 16, SIZES)
SQUARE, WIDE, TALL = (Image.new("RGB", size, "red") for size in ((50, 50), (400, 200), (200, 400)))


def build(image: Any = None, prompt: Any = "make it red", **options: Any) -> Request:
    return build_request(SETTINGS, image, prompt, **options)


def test_defaults_are_the_models() -> None:
    request = build()
    assert (request.steps, request.guidance) == (28, 2.5)
    (row,) = request.rows
    assert (row.prompt, row.references, row.seed, row.size) == ("make it red", (), 0, (128, 128))


def test_what_is_given_is_taken() -> None:
    request = build(steps=np.int64(1), guidance=0, seed=9, size=(np.int64(16), 32))
    assert (request.steps, request.guidance, request.rows[0].seed) == (1, 0.0, 9)
    assert request.rows[0].size == (16, 32)
    assert {type(each) for each in (request.steps, *request.rows[0].size)} == {int}


def test_the_default_size_is_the_first_references_or_the_most_square() -> None:
    assert build([WIDE, SQUARE]).rows[0].size == (176, 96)
    assert [reference.size for reference in build([WIDE, SQUARE]).rows[0].references] == [
        (176, 96),
        (128, 128),
    ]
    assert build([WIDE, SQUARE], size=(64, 64)).rows[0].size == (64, 64)


def test_rows_are_prompt_by_prompt_with_seeds_that_count_on() -> None:
    rows = build([SQUARE, [TALL, WIDE]], ["a", "b"], seed=5, num_images=2).rows
    assert [(row.prompt, row.seed, len(row.references)) for row in rows] == [
        ("a", 5, 1),
        ("a", 6, 1),
        ("b", 7, 2),
        ("b", 8, 2),
    ]
    assert [len(row.references) for row in build([None, SQUARE], ["a", "b"]).rows] == [0, 1]
    assert [len(row.references) for row in build(None, ["a", "b"]).rows] == [0, 0]


def test_a_picture_for_all_prompts_is_converted_once() -> None:
    transparent = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    first, second = build(transparent, ["a", "b"]).rows
    assert first.references[0].picture is second.references[0].picture
    assert first.references[0].picture.getpixel((0, 0)) == (255, 255, 255)  # upright_rgb's
    other = Image.new("RGB", (32, 32), "blue")
    pictures = [
        reference.picture for reference in build([transparent, other, transparent]).rows[0].references
    ]
    assert pictures[0] is pictures[2]
    assert pictures[1].getpixel((0, 0)) == (0, 0, 255)


def test_rows_of_one_shape_run_together() -> None:
    """Of the same size, with references of the same sizes in the same order."""
    images = [SQUARE, WIDE, None, SQUARE, [SQUARE, WIDE], [WIDE, SQUARE]]
    assert build(images, ["x"] * 6).batches() == [[0, 3], [1], [2], [4], [5]]
    assert build(images[:3], ["x"] * 3, size=(64, 64)).batches() == [[0], [1], [2]]


@pytest.mark.parametrize("size", [(16, 16), (512, 512), (1056, 256), (1072, 256), (16, 18432)])
def test_sizes_up_to_sixteen_times_the_largest_preferred_one(size: tuple[int, int]) -> None:
    """(96, 176) has 16 896 pixels, and 16 times as many are 270 336."""
    if size[0] * size[1] <= 16 * 96 * 176:
        assert build(size=size).rows[0].size == size
    else:
        with pytest.raises(KontextError, match=r"more than 16 times .* \(0\.017 million pixels\)"):
            build(size=size)


@pytest.mark.parametrize("size", [(0, 16), (16, 0), (8, 16), (16, 24), (-16, -16)])
def test_sizes_that_are_no_multiples(size: tuple[int, int]) -> None:
    with pytest.raises(KontextError, match=rf"size {size[0]}x{size[1]}: both sides must be multiples of 16"):
        build(size=size)


def test_the_last_seed_counts_too() -> None:
    assert build(seed=2**64 - 2, num_images=2).rows[-1].seed == 2**64 - 1
    for seed, count in ((2**64 - 1, 2), (-1, 2), (-1, 1)):
        with pytest.raises(KontextError, match="whole number from 0"):
            build(seed=seed, num_images=count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of 1 or more, not 0"),
        ({"steps": 1.0}, "steps must be a whole number"),
        ({"num_images": 0}, "num_images must be a whole number"),
        ({"guidance": float("inf")}, "guidance must be a finite number, not inf"),
        ({"prompt": []}, "at least one prompt"),
        (
            {"prompt": ["a"], "image": [SQUARE, SQUARE]},
            "1 prompts need one picture for all or 1 entries, not 2",
        ),
        ({"image": [[SQUARE]]}, r"must be a PIL\.Image"),
    ],
)
def test_what_makes_no_request(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match=message):
        build(**arguments)
