"""Scenes of the tiny world as plain data, and their pictures.

`render(scene)` draws a scene, uint8 [height, width, 3]; `render_masks(scene)` gives the pixels of each object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import draw
from .draw import Canvas, Colour, Mask, paint
from .hands import USUAL, Hand

UNIT = 128  # side of the picture that all sizes below are given for, in pixels

COLOURS: dict[str, Colour] = {
    "red": (222, 38, 44),
    "orange": (250, 138, 20),
    "yellow": (252, 216, 40),
    "green": (40, 160, 72),
    "blue": (38, 98, 224),
    "purple": (126, 52, 180),
    "pink": (250, 112, 178),
    "white": (250, 250, 250),
}
# The same names in softer tones, so that an object stands out from the background of its name.
BACKGROUNDS: dict[str, Colour] = {
    "white": (246, 246, 242),
    "grey": (150, 154, 160),
    "yellow": (250, 234, 150),
    "green": (158, 214, 150),
    "blue": (146, 200, 244),
    "pink": (250, 190, 212),
    "purple": (190, 164, 228),
    "orange": (250, 198, 130),
}
INKS: dict[str, Colour] = {"black": (30, 30, 36), "red": (200, 30, 40), "blue": (30, 70, 190)}
BOARD: Colour = (252, 250, 244)
WHITE: Colour = (255, 255, 255)

PLACES: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "centre": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
CENTRES = (24, 64, 104)  # of the three rows and columns
SIGN_ROOM = 4
"""Units by which a sign may lie off its place and still be whole."""
CHARACTER_PLACES = {"left": 39, "centre": 64, "right": 89}
MEDIUM, LARGE, HUGE = 36, 44, 64  # sizes of objects
STYLES = ("flat", "outline", "stripes", "dots", "pixel", "chalk", "neon")
EFFECTS = ("night", "negative", "black and white")
# Styles with a background of their own; the scene's is ignored.
PAPERS: dict[str, Colour] = {"outline": (250, 240, 214), "chalk": (44, 74, 62), "neon": (24, 20, 44)}


@dataclass(frozen=True)
class SceneObject:
    """A coloured shape at a named place."""

    shape: str
    colour: str
    place: str
    size: int = MEDIUM


@dataclass(frozen=True)
class Sign:
    """A board with a word or letter, across one row of the picture (0 top, 1 middle, 2 bottom)."""

    word: str
    ink: str = "black"
    row: int = 1


@dataclass(frozen=True)
class Identity:
    """The features that stay when the same character is drawn elsewhere or in another pose."""

    colour: str
    body: str
    head: str
    eyes: int
    belly: str


@dataclass(frozen=True)
class Character:
    identity: Identity
    pose: str = "down"
    place: str = "centre"


@dataclass(frozen=True)
class Scene:
    """A picture as data. `background` is a key of BACKGROUNDS, `style` one of STYLES, `effect` one of EFFECTS or
    None; `hand` says how all of it is drawn."""

    background: str
    objects: tuple[SceneObject, ...] = ()
    sign: Sign | None = None
    character: Character | None = None
    style: str = "flat"
    effect: str | None = None
    hand: Hand = USUAL


def width_height(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@lru_cache(maxsize=64)
def background_picture(colour: Colour, width: int, height: int, hand: Hand | None) -> Canvas:
    """A colour with a hand's shade, plain without one; fp32 [height, width, 3]."""
    plain = np.broadcast_to(np.asarray(colour, dtype=np.float32), (height, width, 3))
    return plain if hand is None else hand.shaded(plain)


def lighten(colour: Colour, share: float) -> Colour:
    r, g, b = (round(c + (255 - c) * share) for c in colour)
    return r, g, b


def darken(colour: Colour, share: float) -> Colour:
    r, g, b = (round(c * (1 - share)) for c in colour)
    return r, g, b


@dataclass(frozen=True)
class Frame:
    """A picture's size in pixels, its hand, and the conversion from units (a picture is `UNIT` wide) to pixels."""

    width: int
    height: int
    hand: Hand = USUAL

    @property
    def scale(self) -> float:
        return min(self.width, self.height) / UNIT

    def at(self, x: float, y: float, mask: Mask) -> tuple[int, int]:
        """The top left corner, in pixels, of `mask` centred at (x, y) in units."""
        return (
            round(x / UNIT * self.width - mask.shape[1] / 2),
            round(y / UNIT * self.height - mask.shape[0] / 2),
        )

    def locate(self, item: SceneObject) -> tuple[float, float, int]:
        """An object's centre x and y (in units) and its size (in pixels)."""
        row, column = PLACES[item.place]
        right, down = self.hand.offset(item.shape)
        return CENTRES[column] + right, CENTRES[row] + down, round(item.size * self.scale * self.hand.size)

    def masks(self, item: SceneObject, line: float) -> tuple[Mask, Mask]:
        """An object's silhouette with and without its outline of `line` units."""
        size = self.locate(item)[2]
        hand = self.hand
        return draw.shape_masks(
            item.shape, size, line * self.scale, hand.form, hand.angle(item.shape), hand.plain
        )


def paint_object(canvas: Canvas, frame: Frame, item: SceneObject, style: str) -> None:
    cx, cy, size = frame.locate(item)
    hand = frame.hand
    colour = hand.tone_of(item.colour, COLOURS[item.colour])
    scale = frame.scale
    thick = style in ("outline", "chalk", "neon")
    line = draw.THICK_OUTLINE if thick else hand.outline
    outer, inner = frame.masks(item, line)
    x, y = frame.at(cx, cy, outer)
    if style in ("flat", "pixel"):
        paint(canvas, outer, hand.ink if hand.outline else colour, x, y)
        paint(canvas, inner, colour, x, y)
        return
    if style == "outline":
        paint(canvas, outer - inner, darken(colour, 0.08), x, y)
        return
    if style == "neon":
        radius = 2.6 * scale
        glow = draw.glow_mask(
            item.shape, size, line * scale, radius, hand.form, hand.angle(item.shape), hand.plain
        )
        paint(canvas, glow * 0.85, colour, *frame.at(cx, cy, glow))
        paint(canvas, outer - inner, lighten(colour, 0.45), x, y)
        return
    # The other styles fill shapes with a pattern that is continuous over the whole picture.
    texture = draw.pattern(style, frame.width, frame.height, scale)
    over, part = draw.overlap(texture, inner, x, y)
    if style == "chalk":
        light = lighten(colour, 0.3)
        paint(canvas, part * over * 0.6, light, max(x, 0), max(y, 0))
        paint(canvas, outer - inner, light, x, y)
        return
    paint(canvas, outer, hand.ink, x, y)
    paint(canvas, inner, WHITE, x, y)
    paint(canvas, part * over, colour, max(x, 0), max(y, 0))


def place_sign(frame: Frame, sign: Sign) -> tuple[Mask, Mask, int, int]:
    """A sign's board with and without frame, and the top left corner of both."""
    outer, inner = draw.sign_masks(frame.scale)
    right, down = (min(max(shift, -SIGN_ROOM), SIGN_ROOM) for shift in frame.hand.offset("sign"))
    return outer, inner, *frame.at(UNIT / 2 + right, CENTRES[sign.row] + down, outer)


def paint_sign(canvas: Canvas, frame: Frame, sign: Sign) -> None:
    hand = frame.hand
    outer, inner, x, y = place_sign(frame, sign)
    letters = draw.word_mask(sign.word, outer.shape[1], outer.shape[0], frame.scale)
    for mask, colour in ((outer, hand.ink), (inner, BOARD), (letters, INKS[sign.ink])):
        paint(canvas, mask, colour, x, y)


@dataclass(frozen=True)
class CharacterMasks:
    """The parts of a character as masks, and the top left corner of all of them."""

    body: dict[str, Mask]
    face: dict[str, Mask]
    x: int
    y: int


def place_character(frame: Frame, character: Character) -> CharacterMasks:
    who = character.identity
    scale = frame.scale * min(frame.hand.size, 1.0)
    body = draw.character_masks(who.body, who.head, character.pose, scale)
    face = draw.face_masks(who.eyes, who.belly, scale)
    right, down = frame.hand.offset("character")
    x, y = frame.at(CHARACTER_PLACES[character.place] + right, UNIT / 2 + 2 + down, body["outer"])
    return CharacterMasks(body, face, x, y)


def paint_character(canvas: Canvas, frame: Frame, character: Character) -> None:
    hand, colour = frame.hand, character.identity.colour
    masks = place_character(frame, character)
    layers = (
        (masks.body["outer"], hand.ink),
        (masks.body["inner"], hand.tone_of(colour, COLOURS[colour])),
        (masks.body["dark"], hand.ink),
        (masks.face["rim"], hand.ink),
        (masks.face["white"], WHITE),
        (masks.face["dark"], hand.ink),
    )
    for mask, shade in layers:
        paint(canvas, mask, shade, masks.x, masks.y)


def mosaic(canvas: Canvas, block: int) -> Canvas:
    """Replaces every `block` x `block` square by its mean colour; those at the right and bottom may be smaller."""
    height, width = canvas.shape[:2]
    padded = np.pad(canvas, ((0, -height % block), (0, -width % block), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // block, padded.shape[1] // block
    small = padded.reshape(rows, block, columns, block, 3).mean(axis=(1, 3))
    return small.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]


def apply_effect(canvas: Canvas, empty: Canvas, effect: str, frame: Frame) -> Canvas:
    """Applies an effect to `canvas`; `empty` is the background alone, where the stars of "night" are drawn."""
    if effect == "negative":
        return 255 - canvas
    if effect == "black and white":
        grey = canvas @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        return np.repeat(grey[..., None], 3, axis=2)
    if effect == "night":
        stars = draw.night_sky(frame.width, frame.height, frame.scale)
        sky = np.abs(canvas - empty).max(axis=2) < 1
        dark = canvas * np.array([0.38, 0.41, 0.60], dtype=np.float32) + np.array([2, 6, 34], np.float32)
        paint(dark, stars * sky, (255, 244, 190), 0, 0)
        return dark
    raise KeyError(effect)


def render(scene: Scene, size: int | tuple[int, int] = UNIT) -> NDArray[np.uint8]:
    """The scene's picture, uint8 [height, width, 3]; `size` is the side, or (width, height)."""
    hand = scene.hand
    frame = Frame(*width_height(size), hand)
    paper = PAPERS.get(scene.style)
    if paper:
        empty = background_picture(paper, frame.width, frame.height, None)
    else:
        colour = hand.tone_of(scene.background, BACKGROUNDS[scene.background], background=True)
        empty = background_picture(colour, frame.width, frame.height, hand)
    canvas = empty.copy()
    for item in scene.objects:
        paint_object(canvas, frame, item, scene.style)
    if scene.sign:
        paint_sign(canvas, frame, scene.sign)
    if scene.character:
        paint_character(canvas, frame, scene.character)
    if scene.style == "pixel":
        canvas = mosaic(canvas, max(2, round(4 * frame.scale)))
    if scene.effect:
        canvas = apply_effect(canvas, empty, scene.effect, frame)
    return np.rint(hand.worn(canvas, frame.scale)).astype(np.uint8)


def render_masks(scene: Scene, size: int | tuple[int, int] = UNIT) -> dict[str, Mask]:
    """The share of each pixel that belongs to an object, float32 [height, width] in 0..1, outlines included.

    Keys: each object's shape, "sign", "character", and "character/inner": the body without outline, face and hat.
    """
    frame = Frame(*width_height(size), scene.hand)
    masks: dict[str, Mask] = {}

    def place(name: str, mask: Mask, x: int, y: int) -> None:
        whole = np.zeros((frame.height, frame.width), dtype=np.float32)
        view, part = draw.overlap(whole, mask, x, y)
        view[...] = part
        masks[name] = whole

    for item in scene.objects:
        cx, cy, _ = frame.locate(item)
        outer, _ = frame.masks(item, frame.hand.outline)
        place(item.shape, outer, *frame.at(cx, cy, outer))
    if scene.sign:
        outer, _, x, y = place_sign(frame, scene.sign)
        place("sign", outer, x, y)
    if scene.character:
        masks_of = place_character(frame, scene.character)
        body, face = masks_of.body, masks_of.face
        place("character", np.maximum(body["outer"], body["dark"]), masks_of.x, masks_of.y)
        covered = np.maximum.reduce([face["rim"], face["white"], face["dark"], body["dark"]])
        place("character/inner", body["inner"] * (1 - covered), masks_of.x, masks_of.y)
    return masks
