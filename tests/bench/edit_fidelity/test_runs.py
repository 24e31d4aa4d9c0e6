"""What is measured of one result: against arithmetic by hand, and the pipeline's own resizing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from kontext.bench.cases import Case
from kontext.bench.edit_fidelity.known_edits import KnownEdit
from kontext.bench.edit_fidelity.regions import EditRegion
from kontext.bench.edit_fidelity.runs import Instruments, Made, measure, region_of, source_at
from kontext.runtime.images import to_array
from kontext.runtime.rgb import upright_rgb

SOURCE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
NOTHING = Instruments({}, False)


def grey(level: int, latents: float, success: bool | None = None) -> Made:
    picture = Image.fromarray(np.full((40, 60, 3), level, np.uint8))
    return Made(picture, np.full((1, 4), latents, np.float32), success)


def edit(
    category: str = "local", wanted: str | None = None, source: Image.Image | None = SOURCE
) -> KnownEdit:
    return KnownEdit(
        Case("k", category, "p", lambda: source, None), wanted=wanted, read=lambda _: ["B", "ook"]
    )


def half() -> EditRegion:
    changed = np.zeros((40, 60), bool)
    changed[:, :30] = True
    return EditRegion(changed, "mask")


def test_the_source_is_what_the_pipeline_encodes() -> None:
    turned = SOURCE.copy()
    turned.getexif()[0x0112] = 6  # a quarter
    for picture in (SOURCE, SOURCE.convert("L"), turned):
        sized = source_at(edit(source=picture), (60, 40))
        assert sized is not None
        encoded = (to_array(upright_rgb(picture), (60, 40))[0].transpose(1, 2, 0) + 1) * 127.5
        assert np.abs(np.asarray(sized) - encoded).max() < 1e-3
    assert source_at(edit(source=None), (60, 40)) is None


def test_values_by_hand() -> None:
    """A result that is 4 levels lighter than the reference's everywhere, and latents of 11 beside 10."""
    values = measure(grey(104, 11, True), edit(), grey(100, 10), half(), NOTHING)
    assert values["latent_distance"] == pytest.approx(0.1)
    assert values["psnr"] == values["kept_psnr"] == pytest.approx(20 * math.log10(255 / 4))
    source = source_at(edit(), (60, 40))
    assert source is not None
    error = np.square(np.asarray(source, np.float64)[:, 30:] - 104).mean()
    assert values["source_psnr"] == pytest.approx(10 * math.log10(255**2 / error))
    assert values["success"] == 1
    assert not {"character_success", "clip", "text_error"} & values.keys()


def test_text_to_image_has_no_source_and_no_region() -> None:
    drawn = edit(source=None)
    reference = grey(100, 10)
    assert region_of(drawn, reference.picture) is None
    values = measure(grey(104, 11), drawn, reference, None, NOTHING)
    assert values["psnr"] is not None
    assert [values[name] for name in ("kept_psnr", "source_psnr", "source_ssim", "success")] == [None] * 4


def test_characters_are_compared_with_the_source() -> None:
    seen = []

    def similarity(picture: Image.Image, other: Image.Image) -> float:
        seen.append((picture, other))
        return 0.25

    instruments = Instruments({"dino": similarity}, False)
    result = grey(104, 11, False)
    values = measure(result, edit("Character Reference"), grey(100, 10), half(), instruments)
    assert (values["dino"], values["character_success"]) == (0.25, 0)
    assert seen == [(result.picture, source_at(edit(), (60, 40)))]
    for category in ("ps_human", "motion_change", "action", "character"):
        assert edit(category).has_character
    assert "dino" not in measure(result, edit("style"), grey(100, 10), half(), instruments)


def test_text_is_read_where_it_is_asked_for() -> None:
    instruments = Instruments({}, True)
    found = measure(grey(104, 11), edit(wanted="BOOK"), grey(100, 10), half(), instruments)
    assert (found["text_error"], found["text_read"]) == (0, 1)
    found = measure(grey(104, 11), edit(wanted="BOOKS"), grey(100, 10), half(), instruments)
    assert (found["text_error"], found["text_read"]) == (pytest.approx(0.2), 0)
    assert "text_error" not in measure(grey(104, 11), edit(), grey(100, 10), half(), instruments)


def test_a_mask_of_another_size_covers_what_it_covers() -> None:
    changed = np.zeros((400, 600), bool)
    changed[100:200, :150] = True
    masked = KnownEdit(edit().case, lambda: EditRegion(changed, "mask"))
    region = region_of(masked, grey(100, 10).picture)
    assert region is not None
    assert region.origin == "mask"
    assert np.array_equal(np.argwhere(region.changed)[[0, -1]], [[10, 0], [19, 14]])
