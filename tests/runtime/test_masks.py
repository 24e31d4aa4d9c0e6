"""Masks of every mode as 8-bit grey."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime.masks import blurred, fitted, note_of, of_latents, to_grey


def halves(mode: str, white: object, black: object) -> Image.Image:
    """8x8, the left half white."""
    mask = Image.new(mode, (8, 8), black)  # type: ignore[arg-type]
    mask.paste(white, (0, 0, 4, 8))  # type: ignore[arg-type]
    return mask


GREY = halves("L", 255, 0)


@pytest.mark.parametrize(
    "mask",
    [
        GREY,
        halves("1", 1, 0),
        halves("RGB", "white", "black"),
        halves("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),  # opaque: its transparency says nothing
        halves("RGBA", (255, 255, 255, 255), (0, 0, 0, 0)),
        halves("RGBA", (0, 0, 0, 255), (255, 255, 255, 0)),  # black strokes on nothing
        halves("LA", (9, 255), (9, 0)),
        halves("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)),
        Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257),
        Image.fromarray(np.asarray(GREY).astype(np.float32) / 255),
        GREY.convert("P"),
    ],
    ids=lambda mask: mask.mode,
)
def test_masks_of_every_mode(mask: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(to_grey(mask)), np.asarray(GREY))


def test_a_picture_with_a_hole_is_questioned() -> None:
    """What OpenAI's API takes as a mask says the opposite of ours."""
    photo = Image.effect_mandelbrot((8, 8), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    photo.putalpha(GREY)
    with pytest.warns(UserWarning, match="what is opaque is repainted. If it is a picture with a hole"):
        assert np.array_equal(np.asarray(to_grey(photo)), np.asarray(GREY))


def test_masks_are_turned_as_pictures_are() -> None:
    mask = GREY.copy()
    mask.getexif()[0x0112] = 6  # a quarter turn
    assert np.array_equal(np.asarray(to_grey(mask)), np.rot90(np.asarray(GREY), -1))


def test_damaged_and_huge_masks() -> None:
    with pytest.raises(KontextError, match=r"a mask must be a PIL\.Image\.Image, not ndarray"):
        to_grey(np.zeros((8, 8)))  # type: ignore[arg-type]
    with pytest.raises(KontextError, match="the mask is 1x40000: sides of at most"):
        to_grey(Image.new("L", (1, 40_000)))


def test_a_blur_has_the_masks_own_pixels() -> None:
    mask = GREY.resize((64, 64), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(fitted(blurred(mask, 0), (64, 64))), np.asarray(mask))
    row = np.asarray(blurred(mask, 4))[32]
    assert row[0] == 255
    assert row[-1] == 0
    assert 100 < row[31] < 156
    assert fitted(mask, (16, 32)).size == (16, 32)


@pytest.mark.parametrize("size", [(64, 64), (128, 48)])
def test_latents_are_chosen_as_diffusers_chooses_them(size: tuple[int, int]) -> None:
    """Its mask processor and nearest interpolation, on noise of every grey."""
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor(
        vae_scale_factor=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    noise = np.random.default_rng(1).integers(0, 256, (83, 71), np.uint8)
    binary = processor.preprocess(Image.fromarray(noise), height=size[1], width=size[0])
    theirs = torch.nn.functional.interpolate(binary, size=(size[1] // 8, size[0] // 8))[0, 0].numpy()
    ours = of_latents(fitted(Image.fromarray(noise), size), 8)
    assert np.array_equal(ours, theirs > 0)
    assert 0 < ours.mean() < 1


def test_notes() -> None:
    assert note_of(GREY, 4) is None
    assert "black" in str(note_of(Image.new("L", (8, 8), 127), 8))
    assert "white everywhere" in str(note_of(Image.new("L", (8, 8), 128), 8))
