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
    assert build([SQUARE, WIDE], size=(64, 64)).rows[0].size == (64, 64)


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
    assert build([SQUARE, [SQUARE, SQUARE], None], ["x"] * 3, size=(64, 64)).batches() == [[0], [1], [2]]


def test_rows_whose_references_stand_elsewhere_run_apart() -> None:
    """References of the same sizes at other places have other RoPE tables; a single one stands at the same place."""
    rows = [
        build(image, reference_method=method).rows[0]
        for image in (SQUARE, [SQUARE, SQUARE])
        for method in ("index", "offset")
    ]
    assert Request(tuple(rows), 1, 1.0).batches() == [[0, 1], [2], [3]]


def test_a_picture_is_placed_once_for_all_prompts_and_warned_of_once() -> None:
    with pytest.warns(UserWarning, match="40x10 is 4:1") as caught:
        first, second = build([[Image.new("RGB", (40, 10))]] * 2, ["a", "b"]).rows
    assert len(caught) == 1
    assert first.references[0].size == second.references[0].size == (176, 96)
    both = build([[SQUARE, SQUARE]] * 2, ["a", "b"], reference_method="stitch").rows
    assert both[0].references[0].picture is both[1].references[0].picture
    assert [picture.size for picture in both[0].pictures] == [SQUARE.size, SQUARE.size]


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
        ({"guidance": float("inf")}, "guidance must be a number from -1000 to 1000, not inf"),
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


def test_a_seed_for_each_picture() -> None:
    rows = build(None, ["a", "b"], seed=[7, np.int64(3), 7, 1], num_images=2).rows
    assert [row.seed for row in rows] == [7, 3, 7, 1]
    assert {type(row.seed) for row in rows} == {int}
    for seeds in (range(3, 5), np.array([3, 4])):
        assert [row.seed for row in build(None, "a", seed=seeds, num_images=2).rows] == [3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "seed must be a whole number, or a list with one for each picture, not None"),
        ({"seed": "5"}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": [1, 2]}, "seed is a list of 2, and the edit makes 1"),
        ({"seed": [-1]}, "a seed is a whole number from 0"),
        ({"seed": 2**64 - 1, "num_images": 2}, "a seed is a whole number from 0"),
        ({"prompt": None}, "prompt must be a text, or a list of texts, not None"),
        ({"prompt": [None]}, "each prompt must be a text, not None"),
        ({"prompt": b"x"}, "prompt must be a text, or a list of texts, not b'x'"),
        ({"guidance": "2"}, "guidance must be a number from -1000 to 1000, not '2'"),
        (
            {"size": "128x128"},
            r"size must be \(width, height\) in pixels, such as \(1024, 768\), not '128x128'",
        ),
        ({"size": 128}, r"size must be \(width, height\)"),
        ({"size": (128.0, 128)}, r"size must be \(width, height\)"),
    ],
)
def test_arguments_of_other_kinds_are_answered_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"guidance": -1}, "guidance -1 is below 0"), ({"prompt": " "}, "the prompt is empty")],
)
def test_odd_arguments_are_questioned(options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        build(**options)
