"""Hands: the usual one draws as ever, others draw what an edit keeps in the same way before and after."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from kontext.tiny import scenes
from kontext.tiny.draw import Colour
from kontext.tiny.hands import HELD_OUT, OTHER_PALETTE, SHADES, USUAL, Hand, sample_hand
from kontext.tiny.scenes import Scene, SceneObject, render, render_masks

ITEMS = (SceneObject("circle", "red", "top left"), SceneObject("star", "blue", "bottom right"))
SCENE = Scene("green", ITEMS)
HANDS = [HELD_OUT, *(sample_hand(np.random.default_rng(seed)) for seed in range(6))]


def test_a_hand_is_repeatable() -> None:
    first, second = (sample_hand(np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert first != sample_hand(np.random.default_rng(4))
    np.testing.assert_array_equal(*(render(replace(SCENE, hand=hand)) for hand in (first, second)))


def test_offsets_are_the_same_on_every_machine() -> None:
    """Python's generator gives the same numbers for the same text on every platform."""
    offsets = [Hand(seed=7, spread=5.0).offset(thing) for thing in ("circle", "sign")]
    text = " ".join(f"{value:.6f}" for offset in offsets for value in offset)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "1ccb36e042a0eeb9"


@pytest.mark.parametrize("hand", HANDS)
def test_what_stays_is_drawn_alike(hand: Hand) -> None:
    """A moved star leaves the circle's pixels as they are."""
    hand = hand.unworn()
    before = replace(SCENE, hand=hand)
    after = replace(before, objects=(ITEMS[0], replace(ITEMS[1], place="top right")))
    others = np.maximum(render_masks(before)["star"], render_masks(after)["star"])
    same = others == 0
    if hand.blur:  # reaches a few pixels around the star
        same[56:] = False
        same[:, 56:] = False
    np.testing.assert_array_equal(render(before)[same], render(after)[same])


@pytest.mark.parametrize("hand", HANDS)
def test_things_stay_at_their_places_inside_the_picture(hand: Hand) -> None:
    for place, (row, column) in scenes.PLACES.items():
        scene = Scene("white", (SceneObject("square", "red", place),), hand=hand)
        mask = render_masks(scene)["square"]
        y, x = (float((axis * mask).sum() / mask.sum()) for axis in np.mgrid[:128, :128])
        assert abs(x - scenes.CENTRES[column]) < 8
        assert abs(y - scenes.CENTRES[row]) < 8
        assert not mask[0].any()
        assert not mask[:, -1].any()


def test_other_colours_keep_their_names() -> None:
    """The tone that a hand gives a colour is nearer to that colour than to any other of the world, brightness aside."""

    def hue(colour: Colour) -> np.ndarray:
        return np.array(colour, float) / max(colour)

    for seed in range(40):
        hand = Hand(seed=seed, tone=1.0)
        for name, usual in scenes.COLOURS.items():
            toned = hue(hand.tone_of(name, usual))
            apart = {other: np.abs(toned - hue(each)).sum() for other, each in scenes.COLOURS.items()}
            assert min(apart, key=apart.__getitem__) == name, (seed, name)


def test_the_held_out_palette_has_every_colour() -> None:
    names = {*scenes.COLOURS, *(f"background {name}" for name in scenes.BACKGROUNDS)}
    assert set(OTHER_PALETTE) == names
    for name, usual in scenes.COLOURS.items():
        assert HELD_OUT.tone_of(name, usual) == OTHER_PALETTE[name]


@pytest.mark.parametrize("shade", SHADES)
def test_shades_are_slight(shade: str) -> None:
    picture = render(Scene("grey", hand=Hand(shade=shade))).astype(float)
    assert np.abs(picture.mean(axis=(0, 1)) - scenes.BACKGROUNDS["grey"]).max() < 6
    assert np.ptp(picture, axis=(0, 1)).max() < 20
    assert (np.ptp(picture, axis=(0, 1)).max() == 0) == (shade == "plain")


def test_wear_is_gone_without_it() -> None:
    worn = Hand(grain=4.0, quality=75, blur=0.5)
    assert worn.unworn() == Hand(blur=0.5)
    clean, grained = (render(replace(SCENE, hand=hand)).astype(float) for hand in (worn.unworn(), worn))
    assert 1 < np.abs(clean - grained).mean() < 6
    assert USUAL.unworn() == USUAL
