"""Renderings: deterministic, with every part visible, and masks that match."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from kontext.tiny import draw, scenes
from kontext.tiny.scenes import Character, Identity, Scene, SceneObject, Sign, render, render_masks

ITEMS = (SceneObject("circle", "red", "top left"), SceneObject("star", "blue", "bottom right"))


SCENE = Scene("green", ITEMS)


WHO = Character(Identity("blue", "round", "ears", 2, "patch"))


def test_a_picture_is_uint8_and_repeatable() -> None:
    picture = render(SCENE)
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    again = render(SCENE)
    assert again is not picture
    np.testing.assert_array_equal(picture, again)
    picture[:] = 0  # callers may write on it
    np.testing.assert_array_equal(render(SCENE), again)


@pytest.mark.parametrize("size", [64, 256, (192, 128), (112, 160), (97, 131)])
def test_other_sizes(size: int | tuple[int, int]) -> None:
    width, height = (size, size) if isinstance(size, int) else size
    for style, effect in itertools.product(scenes.STYLES, (None, "night")):
        scene = replace(SCENE, style=style, effect=effect, sign=Sign("CAT"))
        assert render(scene, size).shape == (height, width, 3)
    assert render(Scene("white", character=WHO), size).shape == (height, width, 3)
    for mask in render_masks(replace(SCENE, sign=Sign("CAT"), character=WHO), size).values():
        assert mask.shape == (height, width)


@pytest.mark.parametrize("shape", draw.SHAPES)
def test_each_shape_has_its_colour_at_each_place(shape: str) -> None:
    for (place, (row, column)), colour in itertools.product(scenes.PLACES.items(), scenes.COLOURS):
        ground = "grey"
        picture = render(Scene(ground, (SceneObject(shape, colour, place),)))
        centre = picture[scenes.CENTRES[row], scenes.CENTRES[column]]
        np.testing.assert_allclose(centre, scenes.COLOURS[colour], atol=1)


def test_a_mask_is_what_an_object_changes() -> None:
    for item in ITEMS:
        without = replace(SCENE, objects=tuple(x for x in ITEMS if x != item))
        changed = (render(SCENE) != render(without)).any(axis=2)
        mask = render_masks(SCENE)[item.shape]
        assert 0 <= mask.min() <= mask.max() <= 1
        assert not changed[mask == 0].any()
        assert changed[mask > 0.5].all()


def test_masks_of_sign_and_character() -> None:
    empty = render(Scene("pink"))
    for scene, name in (
        (Scene("pink", sign=Sign("MOON", row=2)), "sign"),
        (Scene("pink", character=WHO), "character"),
        (Scene("pink", character=replace(WHO, identity=replace(WHO.identity, head="hat"))), "character"),
    ):
        changed = (render(scene) != empty).any(axis=2)
        mask = render_masks(scene)[name]
        assert not changed[mask == 0].any()
        assert changed[mask > 0.5].all()
    inside = render_masks(Scene("pink", character=WHO))["character/inner"] > 0.99
    colours = render(Scene("pink", character=WHO))[inside]
    assert (colours == scenes.COLOURS["blue"]).all()


def test_every_identity_and_pose_looks_different() -> None:
    looks = set()
    combinations = list(
        itertools.product(draw.BODIES, draw.HEADS, (1, 2, 3), draw.BELLIES, draw.POSES, ("red", "blue"))
    )
    for body, head, eyes, belly, pose, colour in combinations:
        who = Character(Identity(colour, body, head, eyes, belly), pose)
        looks.add(render(Scene("white", character=who)).tobytes())
    assert len(looks) == len(combinations)


def test_styles_and_effects_look_different() -> None:
    pictures = [render(replace(SCENE, style=style)) for style in scenes.STYLES]
    pictures += [render(replace(SCENE, effect=effect)) for effect in scenes.EFFECTS]
    for one, other in itertools.combinations(pictures, 2):
        assert np.abs(one.astype(int) - other).mean() > 1


def test_effects_by_definition() -> None:
    plain = render(SCENE).astype(int)
    np.testing.assert_allclose(render(replace(SCENE, effect="negative")), 255 - plain, atol=1)
    grey = render(replace(SCENE, effect="black and white"))
    assert (grey == grey[..., :1]).all()
    assert render(replace(SCENE, effect="night")).mean() < 0.6 * plain.mean()


def test_stars_stand_in_the_sky_only() -> None:
    sign = Scene("white", sign=Sign("LOVE", row=2), effect="night")
    bright = render(sign).max(axis=2) > 220
    assert bright.any()
    assert not bright[render_masks(sign)["sign"] > 0].any()


def test_a_mosaic_is_made_of_blocks() -> None:
    picture = render(replace(SCENE, style="pixel"))
    blocks = picture.reshape(32, 4, 32, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_unknown_names_are_refused() -> None:
    for scene in (
        Scene("sky"),
        replace(SCENE, effect="rain"),
        Scene("white", (SceneObject("blob", "red", "top"),)),
        replace(SCENE, style="oil"),
    ):
        with pytest.raises(KeyError):
            render(scene)
