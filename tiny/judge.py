"""Decides whether a picture does what its instruction asked: a picture uint8 [128, 128, 3] and an `Edit` in, a
`Verdict` out. Deterministic, with nothing learned.

Every edit has one correct target. A picture succeeds if all of these hold (errors in levels of 0..255):

- **Closer to the target than to any wrong answer**: the unchanged source; each object in another colour, as another
  shape, missing or elsewhere; another background, effect, ink, pose or place; each feature of the character (colour,
  body, head, eyes, belly) changed. Over the pixels where target and wrong answer differ, the mean error against the
  target is at most `RIVAL_MARGIN` = 0.8 of that against the wrong answer.
- **What changed is right**: the mean error over the edited region is at most `CHANGED_ERROR` = 40 (not for text, which
  is read instead); for effects, characters, styles and drawings it is at most `WHOLE_ERROR` = 20 over the whole
  picture.
- **What did not change is kept**: outside the edited region the mean error is at most `KEPT_ERROR` = 14 (for a new
  background: at most `CHANGED_ERROR` over objects, sign and character).
- **Nothing was added**: no 16 x 16 block has a mean error above `BLOCK_ERROR` = 45, at night half of that (for text and
  characters: outside the edited region or the character); and none above `EMPTY_ERROR` = 20, at night 14, over its
  pixels that are 3 or more away from any object.
- **Objects are where they should be**: pixels closer to the object's fill or outline than to the background overlap its
  mask with IoU of at least `OBJECT_IOU` = 0.6.
- **The word is readable**: of all letters and words, the one whose rendering overlaps the ink most is the target's,
  with an overlap (soft IoU) of at least `WORD_OVERLAP` = 0.55.
- **The style is recognizable**: of all styles, sharp or slightly blurred, the one closest in local mean and local
  contrast is the target's (flat and pixel are compared pixel by pixel). The comparison is blurred, so that a pattern
  may be shifted a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from . import draw, scenes
from .edits import CHARACTER_COLOURS, Edit
from .phrases import ALL_TEXTS
from .regions import VISIBLE, Picture, Region, drawn, edited_regions, shown, widened
from .scenes import BACKGROUNDS, COLOURS, EFFECTS, INKS, PLACES, STYLES, UNIT, Scene

RIVAL_MARGIN = 0.8
CHANGED_ERROR = 40.0
WHOLE_ERROR = 20.0
KEPT_ERROR = 14.0
BLOCK_ERROR = 45.0
EMPTY_ERROR = 20.0
OBJECT_IOU = 0.6
WORD_OVERLAP = 0.55
BLOCK = 16
STYLE_BLUR = 2.0  # pixels
STYLE_SOFTNESS = (1.0,)  # blurs of a style's rendering that are still that style
PLAIN_STYLES = ("flat", "pixel")
SHIFT = 12.0  # levels by which a whole picture may be lighter or darker when styles are compared


@dataclass(frozen=True)
class Verdict:
    """`reasons` are what is wrong, in words (empty on success); `scores` are the measurements."""

    success: bool
    reasons: tuple[str, ...]
    scores: dict[str, float]


def judge(picture: NDArray[np.uint8] | Image.Image, edit: Edit) -> Verdict:
    """Checks `picture` (uint8 [128, 128, 3], or a PIL image of any size) against an edit's target."""
    answer = as_picture(picture)
    target = shown(edit.target)
    reasons: list[str] = []
    scores: dict[str, float] = {}
    judge_closeness(answer, target, edit, reasons, scores)
    judge_rivals(answer, target, edit, reasons, scores)
    if edit.kind not in ("effect", "style"):
        judge_objects(answer, edit.target, reasons, scores)
    if edit.target.sign and edit.kind != "effect":
        judge_word(answer, edit.target, reasons, scores)
    if edit.kind == "style":
        judge_style(answer, edit.target, reasons, scores)
    return Verdict(not reasons, tuple(reasons), scores)


def as_picture(picture: NDArray[np.uint8] | Image.Image) -> Picture:
    """float32 [128, 128, 3] in 0..255; a PIL image of another size is resized."""
    if isinstance(picture, Image.Image):
        image = picture.convert("RGB")
        if image.size != (UNIT, UNIT):
            image = image.resize((UNIT, UNIT), Image.Resampling.LANCZOS)
        return np.asarray(image, dtype=np.float32)
    if picture.shape != (UNIT, UNIT, 3):
        raise ValueError(f"a picture must be [{UNIT}, {UNIT}, 3], not {list(picture.shape)}")
    return picture.astype(np.float32)


def blurred(picture: Picture, radius: float) -> Picture:
    image = Image.fromarray(np.rint(picture).clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)


def closed(region: Region) -> Region:
    """The region with gaps of up to two pixels filled, such as between outline and fill."""
    image = Image.fromarray(region.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.MinFilter(3))) > 0


def mean_over(error: NDArray[np.float32], region: Region) -> float:
    return float(error[region].mean()) if region.any() else 0.0


def judge_closeness(
    answer: Picture, target: Picture, edit: Edit, reasons: list[str], scores: dict[str, float]
) -> None:
    """Whether the edited region is right and the rest is kept."""
    error = np.abs(answer - target).mean(axis=2)
    if edit.kind == "style":  # a pattern may be shifted a little
        error = np.abs(blurred(answer, STYLE_BLUR) - blurred(target, STYLE_BLUR)).mean(axis=2)
    regions = edited_regions(edit)
    if edit.kind != "text":  # letters are thin: they are read instead
        scores["changed_error"] = mean_over(error, regions.changed)
        whole = edit.kind in ("effect", "character", "style", "draw")
        if scores["changed_error"] > (WHOLE_ERROR if whole else CHANGED_ERROR):
            reasons.append(f"the edited region is off by {scores['changed_error']:.0f} levels")
    scores["kept_error"] = mean_over(error, regions.kept)
    # Over objects alone, outlines count for more than over a whole picture.
    if scores["kept_error"] > (CHANGED_ERROR if edit.kind == "background" else KEPT_ERROR):
        reasons.append(f"what should stay is off by {scores['kept_error']:.0f} levels")
    watched = regions.kept if edit.kind in ("text", "character") else np.ones((UNIT, UNIT), dtype=bool)
    scores["worst_block"] = worst_block(error, watched)
    scores["worst_empty_block"] = worst_block(error, ~regions.around_things)
    night = edit.target.effect == "night"
    if scores["worst_block"] > BLOCK_ERROR * (0.5 if night else 1):
        reasons.append(f"something is there that should not be (off by {scores['worst_block']:.0f} levels)")
    if scores["worst_empty_block"] > EMPTY_ERROR * (0.7 if night else 1):
        reasons.append(f"an empty place is off by {scores['worst_empty_block']:.0f} levels")


def worst_block(error: NDArray[np.float32], region: Region) -> float:
    """The largest mean error of any block over its pixels in the region (counted as at least a quarter of the
    block)."""
    return float((in_blocks(error * region) / np.maximum(in_blocks(region), BLOCK * BLOCK / 4)).max())


def in_blocks(values: NDArray[np.float32] | Region) -> NDArray[np.float32]:
    """Sums over squares of `BLOCK` x `BLOCK` pixels."""
    return values.reshape(UNIT // BLOCK, BLOCK, UNIT // BLOCK, BLOCK).sum(axis=(1, 3), dtype=np.float32)


def rivals(edit: Edit) -> Iterator[tuple[str, Scene]]:
    """Wrong answers to the instruction: a description and a scene each."""
    target = edit.target
    if edit.source is not None:
        yield "the source, unchanged", edit.source
    if edit.kind == "effect":
        for effect in (None, *EFFECTS):
            if effect != target.effect:
                yield f"the effect: {effect or 'none'}", replace(target, effect=effect)
        return
    if target.style not in scenes.PAPERS:
        for name in BACKGROUNDS:
            if name != target.background:
                yield f"a {name} background", replace(target, background=name)
    yield from object_rivals(edit)
    if target.sign:
        yield "no sign", replace(target, sign=None)
        for ink in INKS:
            if ink != target.sign.ink:
                yield f"{ink} letters", replace(target, sign=replace(target.sign, ink=ink))
    if target.character:
        yield from character_rivals(target)


def object_rivals(edit: Edit) -> Iterator[tuple[str, Scene]]:
    target = edit.target
    before = set(edit.source.objects) if edit.source and edit.kind != "style" else set()
    taken = {item.place for item in target.objects}
    for item in target.objects:
        others = tuple(other for other in target.objects if other is not item)
        yield f"no {item.shape}", replace(target, objects=others)
        for colour in COLOURS:
            if colour not in (item.colour, target.background):
                yield (
                    f"a {colour} {item.shape}",
                    replace(target, objects=(*others, replace(item, colour=colour))),
                )
        for shape in draw.SHAPES:
            if shape != item.shape:
                changed = replace(target, objects=(*others, replace(item, shape=shape)))
                yield f"a {shape} instead of the {item.shape}", changed
        if item not in before and edit.kind != "style":
            for place in PLACES:
                if place not in taken:
                    moved = replace(target, objects=(*others, replace(item, place=place)))
                    yield f"the {item.shape}: {place}", moved
    for gone in before - set(target.objects):
        if gone.place not in taken:
            yield f"the {gone.shape} still {gone.place}", replace(target, objects=(*target.objects, gone))
    if edit.kind == "style" and len(target.objects) == 2:
        first, second = target.objects
        swapped = (replace(first, place=second.place), replace(second, place=first.place))
        yield "the objects swapped", replace(target, objects=swapped)


def character_rivals(target: Scene) -> Iterator[tuple[str, Scene]]:
    who = target.character
    assert who is not None
    features: dict[str, tuple[str | int, ...]] = {
        "colour": tuple(name for name in CHARACTER_COLOURS if name != target.background),
        "body": draw.BODIES,
        "head": draw.HEADS,
        "eyes": (1, 2, 3),
        "belly": draw.BELLIES,
    }
    for feature, values in features.items():
        for value in values:
            if value != getattr(who.identity, feature):
                identity = replace(who.identity, **{feature: value})  # type: ignore[arg-type]
                yield f"{feature}: {value}", replace(target, character=replace(who, identity=identity))
    for pose in draw.POSES:
        if pose != who.pose:
            yield f"pose: {pose}", replace(target, character=replace(who, pose=pose))
    for place in scenes.CHARACTER_PLACES:
        if place != who.place:
            yield f"place: {place}", replace(target, character=replace(who, place=place))


def judge_rivals(
    answer: Picture, target: Picture, edit: Edit, reasons: list[str], scores: dict[str, float]
) -> None:
    """Whether the answer is closer to the target than to every wrong answer, over the pixels where the two differ."""
    floor = VISIBLE
    if edit.kind == "style":
        # Thin lines on paper: a slightly darker paper would look like another ink.
        answer = answer - np.median(answer - target, axis=(0, 1)).clip(-SHIFT, SHIFT)
        answer, target, floor = blurred(answer, STYLE_BLUR), blurred(target, STYLE_BLUR), 4.0
    worst = 0.0
    for name, scene in rivals(edit):
        rows = np.flatnonzero((drawn(scene) != drawn(edit.target)).reshape(UNIT, -1).any(axis=1))
        if not rows.size:
            continue
        rival = blurred(shown(scene), STYLE_BLUR) if edit.kind == "style" else shown(scene)
        part = slice(rows[0], rows[-1] + 1)  # most wrong answers differ in a few rows
        red, green, blue = np.moveaxis(np.abs(rival[part] - target[part]), 2, 0)
        difference = np.maximum(np.maximum(red, green), blue)
        region = difference > (max(floor, 0.3 * difference.max()) if edit.kind == "style" else floor)
        if region.sum() < 8:  # indistinguishable
            continue
        seen = answer[part][region]
        to_target = float(np.abs(seen - target[part][region]).mean())
        ratio = to_target / max(float(np.abs(seen - rival[part][region]).mean()), 1e-6)
        worst = max(worst, ratio)
        if ratio > RIVAL_MARGIN:
            reasons.append(f"it looks like {name}")
    scores["rival_ratio"] = worst


def judge_objects(answer: Picture, scene: Scene, reasons: list[str], scores: dict[str, float]) -> None:
    """Whether each object, segmented by colour, covers its mask."""
    masks = scenes.render_masks(scene)
    hand = scene.hand
    ground = shown(Scene(scene.background, hand=hand))
    away = np.linalg.norm(answer - ground, axis=2)
    for item in scene.objects:
        mask = masks[item.shape] > 0.5
        window = widened(mask, 4)
        for name, other in masks.items():
            if name != item.shape:
                window &= ~widened(other > 0.5, 1)
        fill = hand.tone_of(item.colour, COLOURS[item.colour])
        inks = np.array([fill, hand.ink] if hand.outline else [fill], dtype=np.float32)
        near = np.linalg.norm(answer[:, :, None] - inks, axis=3).min(axis=2)
        found = closed(near < away) & window
        overlap = (found & mask).sum() / max(1, (found | (mask & window)).sum())
        scores[f"iou/{item.shape}"] = float(overlap)
        if scores[f"iou/{item.shape}"] < OBJECT_IOU:
            reasons.append(f"the {item.colour} {item.shape} is not {item.place}, or not that shape")


def judge_word(answer: Picture, scene: Scene, reasons: list[str], scores: dict[str, float]) -> None:
    """Whether the sign shows the target's letter or word."""
    assert scene.sign is not None
    board = scenes.render_masks(scene)["sign"]
    rows, columns = np.nonzero(board > 0.5)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    paper, ink = np.asarray(scenes.BOARD, np.float32), np.asarray(INKS[scene.sign.ink], np.float32)
    along = (paper - answer[top:bottom, left:right]) @ (paper - ink) / ((paper - ink) @ (paper - ink))
    frame = 3  # pixels of the board's own outline
    inked = along.clip(0, 1)[frame:-frame, frame:-frame]

    def overlap(word: str) -> float:
        letters = draw.word_mask(word, right - left, bottom - top, 1.0)[frame:-frame, frame:-frame]
        return float(np.minimum(letters, inked).sum() / np.maximum(letters, inked).sum())

    overlaps = {word: overlap(word) for word in ALL_TEXTS}
    read = max(overlaps, key=overlaps.__getitem__)
    scores["word_overlap"] = overlaps[scene.sign.word]
    if read != scene.sign.word:
        reasons.append(f"the sign reads {read}, not {scene.sign.word}")
    elif overlaps[read] < WORD_OVERLAP:
        reasons.append(f"the sign is hard to read ({overlaps[read]:.2f})")


def texture(picture: Picture) -> NDArray[np.float32]:
    """Local mean and local contrast of every channel, [H, W, 6], which do not depend on a pattern's phase."""
    mean = blurred(picture, 4)
    contrast = blurred(np.abs(picture - blurred(picture, 4)), 4)
    return np.concatenate([mean, 2 * contrast], axis=2)


@lru_cache(maxsize=32)
def style_looks(scene: Scene) -> tuple[NDArray[np.float32], ...]:
    sharp = shown(scene)
    return tuple(texture(look) for look in (sharp, *(blurred(sharp, r) for r in STYLE_SOFTNESS)))


def judge_style(answer: Picture, scene: Scene, reasons: list[str], scores: dict[str, float]) -> None:
    """Whether the target's style is the closest of all, each of them sharp or as blurred as by an autoencoder."""
    seen = texture(answer)
    # Papers differ everywhere, fills only near objects.
    around = widened(np.maximum.reduce(list(scenes.render_masks(scene).values())) > 0.5, 4)

    def distance(style: str) -> float:
        looks = style_looks(replace(scene, style=style))
        return min(mean_over(np.abs(seen - look).mean(axis=2), around) for look in looks)

    distances = {style: distance(style) for style in STYLES}
    nearest = min(distances, key=distances.__getitem__)
    if (
        nearest in PLAIN_STYLES
    ):  # the same texture and no pattern that could be shifted: compared pixel by pixel

        def pixel_error(style: str) -> float:
            sharp = shown(replace(scene, style=style))
            looks = (sharp, *(blurred(sharp, radius) for radius in STYLE_SOFTNESS))
            return min(mean_over(np.abs(answer - look).mean(axis=2), around) for look in looks)

        nearest = min(PLAIN_STYLES, key=pixel_error)
    scores["style_distance"] = distances[scene.style]
    if nearest != scene.style:
        reasons.append(f"the style is {nearest}, not {scene.style}")
