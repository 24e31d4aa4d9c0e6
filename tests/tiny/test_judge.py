"""The judge accepts the correct picture, even slightly degraded, and rejects wrong ones."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kontext.tiny import edits, scenes
from kontext.tiny.edits import KINDS, Edit, sample_edit
from kontext.tiny.judge import (
    OBJECT_IOU,
    closed,
    judge,
    judge_objects,
    mean_over,
    rivals,
    worst_block,
)
from kontext.tiny.regions import shown, widened
from kontext.tiny.scenes import SceneObject, render

ALL = (*KINDS, "draw")
COUNT = 16
Picture = NDArray[np.uint8]
RNG = np.random.default_rng(11)


def soft(picture: Picture, radius: float = 0.7) -> Picture:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def noisy(picture: Picture) -> Picture:
    return (picture + RNG.normal(0, 6, picture.shape)).round().clip(0, 255).astype(np.uint8)


def jpeg(picture: Picture) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file).convert("RGB"))


def brighter(picture: Picture) -> Picture:
    return (picture.astype(int) + 8).clip(0, 255).astype(np.uint8)


def darker(picture: Picture) -> Picture:
    return (picture.astype(int) - 8).clip(0, 255).astype(np.uint8)


DEGRADATIONS: tuple[Callable[[Picture], Picture], ...] = (
    lambda picture: picture,
    soft,
    noisy,
    jpeg,
    brighter,
    darker,
    lambda picture: jpeg(noisy(soft(picture))),
)


def sampled(kind: str, seed: int, count: int = COUNT) -> list[Edit]:
    rng = np.random.default_rng(seed)
    return [sample_edit(rng, ("train", "test")[i % 2], kind) for i in range(count)]


@pytest.mark.parametrize("kind", ALL)
def test_the_right_picture_is_accepted_and_the_source_is_not(kind: str) -> None:
    for index, edit in enumerate(sampled(kind, 1)):
        right = render(edit.target)
        verdict = judge(right, edit)
        assert verdict.success, (edit.prompt, verdict)
        assert verdict.reasons == ()
        degraded = DEGRADATIONS[1 + index % (len(DEGRADATIONS) - 1)](right)
        verdict = judge(degraded, edit)
        assert verdict.success, (edit.prompt, index, verdict)
        if edit.source is not None:
            verdict = judge(soft(render(edit.source)), edit)
            assert not verdict.success, edit.prompt
            assert verdict.reasons


@pytest.mark.parametrize("kind", ALL)
def test_wrong_answers_are_rejected(kind: str) -> None:
    """Two random wrong answers of every kind that the judge compares with, slightly blurred."""
    rng = np.random.default_rng(2)
    for edit in sampled(kind, 3, 12):
        wrong = list(rivals(edit))
        for index in rng.permutation(len(wrong))[:3]:
            name, scene = wrong[index]
            if scene == edit.target:
                continue
            assert not judge(soft(render(scene)), edit).success, (edit.prompt, name)


def other_target(edit: Edit, rng: np.random.Generator) -> scenes.Scene:
    while True:
        target = sample_edit(rng, kind=edit.kind).target
        if target != edit.target:
            return target


@pytest.mark.parametrize("kind", ALL)
def test_another_edits_answer_is_rejected(kind: str) -> None:
    rng = np.random.default_rng(4)
    for edit in sampled(kind, 5, 12):
        assert not judge(render(other_target(edit, rng)), edit).success, edit.prompt


@pytest.mark.parametrize("kind", ["recolour", "add", "remove", "move", "background", "effect", "draw"])
def test_a_stray_object_is_rejected(kind: str) -> None:
    for edit in sampled(kind, 6, 16):
        target = edit.target
        if target.character or any(item.size != scenes.MEDIUM for item in target.objects):
            continue
        rows = {target.sign.row} if target.sign else set()
        taken = {item.place for item in target.objects}
        place = next(p for p, (row, _) in scenes.PLACES.items() if p not in taken and row not in rows)
        used = {item.shape for item in target.objects}
        colours = {target.background, *(item.colour for item in target.objects)}
        shape = next(s for s in ("heart", "circle", "cross", "star") if s not in used)
        colour = next(c for c in ("red", "blue", "purple", "green", "orange") if c not in colours)
        stray = replace(target, objects=(*target.objects, SceneObject(shape, colour, place)))
        assert not judge(render(stray), edit).success, (edit.prompt, stray)


@pytest.mark.parametrize("kind", ["recolour", "add", "remove", "move"])
def test_a_change_to_another_object_is_rejected(kind: str) -> None:
    checked = 0
    for edit in sampled(kind, 7, 16):
        assert edit.source is not None
        for kept in set(edit.source.objects) & set(edit.target.objects):
            rest = tuple(item for item in edit.target.objects if item != kept)
            colours = {edit.target.background, kept.colour, *(item.colour for item in rest)}
            colour = next(c for c in scenes.COLOURS if c not in colours)
            for items in (rest, (*rest, replace(kept, colour=colour))):
                assert not judge(render(replace(edit.target, objects=items)), edit).success, edit.prompt
            checked += 1
    assert checked > 10


def test_a_wrong_word_is_rejected_and_named() -> None:
    rng = np.random.default_rng(8)
    for edit in sampled("text", 9, 60):
        assert edit.target.sign is not None
        word = edits.pick(rng, [text for text in edits.ALL_TEXTS if text != edit.target.sign.word])
        verdict = judge(soft(render(replace(edit.target, sign=replace(edit.target.sign, word=word)))), edit)
        assert not verdict.success
        assert any(f"reads {word}" in reason for reason in verdict.reasons), (edit.prompt, word, verdict)


def test_an_unreadable_sign_is_rejected() -> None:
    for edit in sampled("text", 10, 20):
        assert edit.target.sign is not None
        picture = render(edit.target)
        top = 40 * edit.target.sign.row + 6
        picture[top : top + 36, 6:122] = picture[top : top + 36, 6:122].mean(axis=(0, 1))
        assert not judge(picture, edit).success


def test_every_wrong_style_is_rejected() -> None:
    for edit in sampled("style", 11, 7):
        for style in scenes.STYLES:
            answer = render(replace(edit.target, style=style))
            assert judge(answer, edit).success == (style == edit.target.style), (edit.prompt, style)


def test_a_pattern_may_sit_elsewhere() -> None:
    """Stripes and dots that are shifted by a few pixels are still the same style."""
    accepted = []
    for edit in sampled("style", 12, 30):
        if edit.target.style in ("stripes", "dots"):
            shifted = replace(edit.target, style="flat")
            picture = render(edit.target)
            inside = (picture != render(shifted)).any(axis=2)
            moved = np.roll(picture, 3, axis=1)
            inside &= np.roll(inside, 3, axis=1)
            picture[inside] = moved[inside]
            accepted.append(judge(picture, edit).success)
    assert np.mean(accepted) > 0.9


def test_noise_and_grey_are_rejected() -> None:
    rng = np.random.default_rng(13)
    for kind in ALL:
        edit = sampled(kind, 14, 1)[0]
        for picture in (
            np.full((128, 128, 3), 128, np.uint8),
            rng.integers(0, 256, (128, 128, 3), dtype=np.uint8),
            render(scenes.Scene(edit.target.background, effect=edit.target.effect)),
        ):
            if kind == "remove" and not edit.target.objects:
                continue
            assert not judge(picture, edit).success


def test_pil_pictures_of_any_size() -> None:
    edit = sampled("recolour", 15, 1)[0]
    right = Image.fromarray(render(edit.target))
    assert judge(right, edit).success
    assert judge(right.convert("RGBA"), edit).success
    assert judge(Image.fromarray(render(edit.target, 256)), edit).success


def test_arrays_of_other_shapes_are_refused() -> None:
    edit = sampled("recolour", 16, 1)[0]
    with pytest.raises(ValueError, match="128"):
        judge(np.zeros((64, 64, 3), np.uint8), edit)


def test_regions_grow_as_scipys_do() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(21)
    for pixels in (1, 2, 4):
        region = rng.random((128, 128)) > 0.99
        square = np.ones((2 * pixels + 1, 2 * pixels + 1), bool)
        assert np.array_equal(widened(region, pixels), ndimage.binary_dilation(region, square))
    lines = np.zeros((128, 128), bool)
    lines[20:60, [30, 33, 40]] = True  # gaps of two pixels and of six
    expected = lines.copy()
    expected[20:60, 31:33] = True
    assert np.array_equal(closed(lines), expected)


def test_the_worst_block_is_the_one_with_the_largest_mean() -> None:
    """Of 16 x 16 pixels; a block of which only a corner is looked at counts as a quarter."""
    error, everything = np.zeros((128, 128), np.float32), np.ones((128, 128), bool)
    assert worst_block(error, everything) == 0
    error[16:32, 48:64] = 40
    error[32:48, 64:72] = 60  # half a block: a mean of 30
    assert worst_block(error, everything) == 40
    part = np.zeros((128, 128), bool)
    part[32:48, 64:72] = True
    assert worst_block(error, part) == 60
    part[:] = False
    part[32:34, 64:72] = True  # 16 of 256 pixels, taken as 64
    assert worst_block(error, part) == 15
    assert mean_over(error, part) == 60
    assert mean_over(error, ~everything) == 0


@pytest.mark.parametrize(
    ("kind", "levels", "reason"),
    [
        ("remove", 13, ""),
        ("remove", 16, "what should stay is off by 1[56] levels"),
        ("recolour", -13, ""),
        ("recolour", -16, "what should stay is off by 1[56] levels"),
        ("effect", 18, ""),
        ("effect", 23, "the edited region is off by 2[0-3] levels"),
        ("draw", -18, ""),
        ("draw", -23, "the edited region is off by 2[0-3] levels"),
    ],
)
def test_how_far_a_whole_picture_may_be_off(kind: str, levels: int, reason: str) -> None:
    """Documented in the judge's docstring: 14 levels where nothing should change, 20 over a whole picture."""
    checked = 0
    for edit in sampled(kind, 17, 12):
        shifted = render(edit.target).astype(int) + levels
        if shifted.min() < 0 or shifted.max() > 255 or edit.target.effect == "night":
            continue
        verdict = judge(shifted.astype(np.uint8), edit)
        checked += 1
        if reason:
            assert not verdict.success
            assert any(re.fullmatch(reason, each) for each in verdict.reasons), verdict
        else:
            assert not any("off by" in each for each in verdict.reasons), verdict
    assert checked


@pytest.mark.parametrize(
    "wrong", [{"place": "another"}, {"shape": "star"}, {"shape": "triangle"}, {"size": scenes.MEDIUM // 2}]
)
def test_an_object_of_another_place_shape_or_size_is_named(wrong: dict[str, object]) -> None:
    """By itself, without the other tests of a whole edit."""
    place, other = list(scenes.PLACES)[:2]
    item = SceneObject("circle", "red", place)
    target = scenes.Scene("white", (item,))
    if "place" in wrong:
        wrong = {"place": other}
    reasons: list[str] = []
    scores: dict[str, float] = {}
    judge_objects(shown(target), target, reasons, scores)
    assert not reasons
    assert scores["iou/circle"] > 0.95
    drawn = scenes.Scene("white", (replace(item, **wrong),))  # type: ignore[arg-type]
    judge_objects(shown(drawn), target, reasons, scores)
    assert reasons == [f"the red circle is not {place}, or not that shape"]
    assert scores["iou/circle"] < OBJECT_IOU
