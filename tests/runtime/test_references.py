"""Reference pictures: places as ComfyUI computes them, canvases, sizes and what is warned of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime.references import Reference, place_references, places_of, stitch
from kontext.runtime.request import build_request
from kontext.runtime.sampler_entry import SamplerEntry
from kontext.runtime.tokens import positions

FLUX = ((672, 1568), (832, 1248), (944, 1104), (1024, 1024), (1248, 832), (1392, 752), (1568, 672))
SETTINGS = SamplerEntry(28, 2.5, 0.5, 1.15, 256, 4096, 16, FLUX)
COMFYUI = json.loads(Path(__file__).with_name("comfyui_positions.json").read_text())


def drawn(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def placed(picture: Any, rule: Any = "auto", output: Any = (1024, 1024), method: str = "index") -> Any:
    pictures = picture if isinstance(picture, list) else [picture]
    return place_references([Image.new("RGB", size) for size in pictures], method, rule, output, SETTINGS)


@pytest.mark.parametrize(
    "case", COMFYUI["cases"], ids=lambda case: f"{case['method']}-{len(case['references'])}"
)
def test_positions_are_comfyuis(case: dict[str, Any]) -> None:
    """Against the ids of its own Flux forward; comfyui_positions.json says how they were made."""
    references = [(width, height) for width, height in case["references"]]
    places = places_of(case["method"], references)
    grids = [(height // 16, width // 16) for width, height in (case["size"], *references)]
    origins = [(0, 0, 0), *((image, top // 16, left // 16) for image, top, left in places)]
    ids = positions(5, grids, origins)
    begin = 5 + grids[0][0] * grids[0][1]
    for (rows, columns), (first, last) in zip(grids[1:], case["first_and_last"], strict=True):
        assert [ids[begin].tolist(), ids[begin + rows * columns - 1].tolist()] == [first, last]
        begin += rows * columns
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == case["sha256"]


@pytest.mark.parametrize("method", ["index", "offset", "stitch"])
def test_one_reference_is_the_same_with_every_method(method: str) -> None:
    picture = drawn(300, 200)
    (reference,), notes = place_references([picture], method, "preferred", (1024, 1024), SETTINGS)
    assert reference == Reference(picture, (1248, 832), (1, 0, 0))  # type: ignore[arg-type]
    assert notes == []


def test_stitched_pictures_stand_side_by_side_at_the_first_ones_height() -> None:
    """As ComfyUI's node ImageStitch by default: direction right, sizes matched, widths rounded down, no spacing."""
    first, second, third = drawn(60, 40), drawn(50, 90), drawn(33, 40)
    canvas = np.asarray(stitch([first, second, third]))
    scaled = second.resize((22, 40), Image.Resampling.LANCZOS)  # 40 * 50 / 90 = 22.2
    np.testing.assert_array_equal(canvas, np.concatenate([first, scaled, third], axis=1))
    (reference,), notes = place_references([first, second, third], "stitch", "auto", (1024, 1024), SETTINGS)
    assert reference.size == (1568, 672)
    assert reference.place == (1, 0, 0)
    (note,) = notes
    assert note == (
        "the canvas of the stitched references of 115x40 is 2.88:1, beyond the 2.4:1 that the model knows: it is "
        "squashed to 1568x672"
    )


def test_a_canvas_that_is_too_large_is_refused() -> None:
    with pytest.raises(KontextError, match="the canvas of the stitched references has more than 100 million"):
        stitch([Image.new("1", (10, 20_000)), Image.new("1", (20_000, 3))])


@pytest.mark.parametrize(
    ("picture", "rule", "output", "size"),
    [
        ((1920, 1080), "auto", (1024, 576), (1024, 576)),
        ((1920, 1080), "auto", (1360, 768), (1360, 768)),  # 0.4 % wider
        ((1920, 1080), "auto", (2784, 1504), (2784, 1504)),  # 4.1 % wider, as the preferred size is
        ((100, 100), "auto", (512, 512), (512, 512)),
        ((1030, 1000), "auto", (512, 512), (512, 512)),
        ((1920, 1080), "preferred", (1024, 576), (1392, 752)),
        ((1920, 1080), "output", (512, 512), (512, 512)),
        ((1920, 1080), (640, 368), (512, 512), (640, 368)),
    ],
)
def test_sizes_that_references_are_encoded_at(picture: Any, rule: Any, output: Any, size: Any) -> None:
    (reference,), notes = placed(picture, rule, output)
    assert reference.size == size
    assert notes == []


def test_only_a_first_reference_of_another_aspect_is_warned_of() -> None:
    references, notes = placed([(1920, 1080), (200, 300), (30, 30)], output=(512, 512))
    assert [each.size for each in references] == [(1392, 752), (832, 1248), (512, 512)]
    (note,) = notes
    assert note == (
        "the output of 512x512 has another aspect than the picture of 1920x1080, which is encoded at 1392x752: "
        "the edit may crop or zoom it; an output of 688x384 has its aspect"
    )
    assert placed([(30, 30), (1920, 1080)], output=(512, 512))[1] == []
    assert placed([(1920, 1080), (1080, 1920)], output=(512, 512), method="stitch")[1] == []


@pytest.mark.parametrize("picture", [(4000, 50), (50, 4000)])
def test_a_picture_that_is_squashed_is_warned_of(picture: tuple[int, int]) -> None:
    size = "1568x672" if picture[0] > 50 else "672x1568"
    (note,) = placed(picture, "preferred")[1]
    assert note.startswith(f"the picture of {picture[0]}x{picture[1]} is 80:1, beyond the 2.4:1 that")
    assert note.endswith(f"it is squashed to {size}")
    assert (
        placed(picture, "auto", (picture[0] // 50 * 16, picture[1] // 50 * 16))[1] == []
    )  # it has its aspect
    assert placed((2390, 1000), "preferred")[1] == []


def test_nothing_changes_without_a_size() -> None:
    """The output takes the first reference's preferred size, and each reference is encoded at its own."""
    for rule in ("auto", "preferred"):
        (row,) = build_request(SETTINGS, [drawn(192, 108), drawn(103, 100)], "x", reference_size=rule).rows
        assert row.size == (1392, 752)
        assert [each.size for each in row.references] == [(1392, 752), (1024, 1024)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"reference_method": "beside"},
            "the reference method must be index, offset or stitch, not 'beside'",
        ),
        ({"reference_size": "large"}, "auto, preferred, output or WIDTHxHEIGHT, not 'large'"),
        ({"reference_size": "100x100"}, "reference size 100x100: both sides .* the nearest is 96x96"),
        ({"reference_size": (0, 16)}, "reference size 0x16: width and height must be above 0"),
        ({"reference_size": (16384, 16384)}, "reference size 16384x16384 is more than 16 times"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match=message):
        build_request(SETTINGS, None, "x", **arguments)
