"""Antialiased masks of everything that scenes contain: float32 [height, width] in 0..1.

They are drawn with Pillow at 4x, scaled down and cached. Painting a scene then takes a few blends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Mask: TypeAlias = NDArray[np.float32]
Canvas: TypeAlias = NDArray[np.float32]
Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

SUPERSAMPLE = 4
# Sizes below are in pixels of a 128 x 128 picture.
OUTLINE = 1.6
THICK_OUTLINE = 2.6
SIGN_SIZE = (118, 38)
CHARACTER_SIZE = (80, 112)

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
BODIES = ("round", "square", "pear")
HEADS = ("ears", "points", "antennae", "hat")
BELLIES = ("plain", "patch", "bars")
POSES = ("up", "down", "waving")


def polygon(shape: str, form: float = 0.0) -> list[Point]:
    """The corners of a shape that fills the square -1..1 (y points down); `form` is from -1, thin, to 1, thick."""
    if shape == "circle":
        high, wide = 0.98 - 0.08 * max(form, 0), 0.98 + 0.08 * min(form, 0)
        return [(wide * math.cos(a), high * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 72, False)]
    if shape == "square":
        high, wide = 0.88 - 0.06 * max(form, 0), 0.88 + 0.06 * min(form, 0)
        return [(-wide, -high), (wide, -high), (wide, high), (-wide, high)]
    if shape == "triangle":
        return [
            (0, -0.95 + 0.12 * max(form, 0)),
            (1 + 0.12 * min(form, 0), 0.85),
            (-1 - 0.12 * min(form, 0), 0.85),
        ]
    if shape == "star":
        radii = (1.06, 0.46 + 0.09 * form)
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a) + 0.08) for i, a in enumerate(angles)]
    if shape == "heart":
        wide = 1 + 0.1 * min(form, 0)
        high = 1 - 0.1 * max(form, 0)
        turns = np.linspace(0, 2 * math.pi, 72, False)
        return [
            (
                wide * math.sin(t) ** 3,
                high
                * (
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16
                    - 0.1
                ),
            )
            for t in turns
        ]
    if shape == "cross":
        a, b = 0.36 + 0.1 * form, 0.96
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    raise KeyError(shape)


def turned(points: Sequence[Point], degrees: float) -> list[Point]:
    """The corners turned about the middle."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(c * x - s * y, s * x + c * y) for x, y in points]


def plain_heart() -> list[Point]:
    """A heart of two half circles and a point below."""
    turns = np.linspace(math.pi, 2 * math.pi, 24)
    arcs = [(x + 0.5 * math.cos(t), -0.4 + 0.5 * math.sin(t)) for x in (-0.5, 0.5) for t in turns]
    return [*arcs, (0.0, 0.95)]


class Pen:
    """Draws into one 4x supersampled mask; coordinates are in pixels of the final picture."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], grow: float = 0.0, fill: int = 255) -> None:
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        self.draw.polygon(scaled, fill=fill)
        if grow > 0:
            self.stroke(points, 2 * grow, fill)

    def stroke(self, points: Sequence[Point], width: float, fill: int = 255) -> None:
        """A closed line of `width` pixels with round corners."""
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        self.draw.line([*scaled, scaled[0]], fill=fill, width=round(width * SUPERSAMPLE))
        for x, y in points:
            self.ellipse(x, y, width / 2, width / 2, fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, grow: float = 0.0, fill: int = 255) -> None:
        rx, ry = rx + grow, ry + grow
        box = [(x - rx) * SUPERSAMPLE, (y - ry) * SUPERSAMPLE, (x + rx) * SUPERSAMPLE, (y + ry) * SUPERSAMPLE]
        self.draw.ellipse(box, fill=fill)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, radius: float, grow: float = 0.0, fill: int = 255
    ) -> None:
        corners = [
            (x0 - grow) * SUPERSAMPLE,
            (y0 - grow) * SUPERSAMPLE,
            (x1 + grow) * SUPERSAMPLE,
            (y1 + grow) * SUPERSAMPLE,
        ]
        self.draw.rounded_rectangle(corners, radius=(radius + grow) * SUPERSAMPLE, fill=fill)

    def capsule(self, start: Point, end: Point, radius: float, grow: float = 0.0) -> None:
        radius += grow
        line = [
            (start[0] * SUPERSAMPLE, start[1] * SUPERSAMPLE),
            (end[0] * SUPERSAMPLE, end[1] * SUPERSAMPLE),
        ]
        self.draw.line(line, fill=255, width=round(2 * radius * SUPERSAMPLE))
        for x, y in (start, end):
            self.ellipse(x, y, radius, radius)

    def mask(self) -> Mask:
        small = self.image.resize(self.size, Image.Resampling.BOX)
        mask = np.asarray(small, dtype=np.float32) / np.float32(255)
        mask.setflags(write=False)
        return mask


def frozen(mask: Mask) -> Mask:
    mask = np.ascontiguousarray(mask, dtype=np.float32)
    mask.setflags(write=False)
    return mask


@lru_cache(maxsize=1024)
def shape_masks(
    shape: str, size: int, line: float, form: float = 0.0, degrees: float = 0.0, plain: bool = False
) -> tuple[Mask, Mask]:
    """(silhouette with outline, inside without outline) of a shape `size` pixels wide; the outline is `line` wide.

    Both are [side, side], with the shape in the middle. `form` is as in `polygon`; `plain` shapes have hard edges.
    """
    margin = math.ceil(line) + 1 + math.ceil(0.2 * size * bool(degrees))
    side = size + 2 * margin
    half, centre = size / 2 - line / 2, side / 2
    corners = plain_heart() if plain and shape == "heart" else polygon(shape, form)
    points = [(centre + half * x, centre + half * y) for x, y in turned(corners, degrees)]
    outer, inner = Pen(side, side), Pen(side, side)
    outer.polygon(points, grow=line / 2)
    inner.polygon(points)
    if line:
        inner.stroke(points, line, fill=0)
    masks = outer.mask(), inner.mask()
    return (hard(masks[0]), hard(masks[1])) if plain else masks


def hard(mask: Mask) -> Mask:
    """A mask without partly covered pixels."""
    return frozen((mask > 0.5).astype(np.float32))


@lru_cache(maxsize=256)
def glow_mask(
    shape: str,
    size: int,
    line: float,
    radius: float,
    form: float = 0.0,
    degrees: float = 0.0,
    plain: bool = False,
) -> Mask:
    """A blurred halo around a shape's outline; the shape's mask, 3 radii larger on each side."""
    outer, inner = shape_masks(shape, size, line, form, degrees, plain)
    pad = math.ceil(3 * radius)
    ring = np.pad(outer - inner, pad)
    image = Image.fromarray((ring * 255).astype(np.uint8))
    return frozen(
        np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / np.float32(255)
    )


@lru_cache(maxsize=64)
def pattern(name: str, width: int, height: int, scale: float) -> Mask:
    """A fill pattern of a whole picture: "stripes" (diagonal), "dots" (staggered) or "chalk" (hatching)."""
    factor = SUPERSAMPLE
    y, x = (np.mgrid[0 : height * factor, 0 : width * factor] + 0.5) / (factor * scale)
    if name == "stripes":
        fine = ((x + y) % 8) < 4.5
    elif name == "dots":
        row = np.floor(y / 7)
        dx = (x + 3.5 * (row % 2)) % 7 - 3.5
        dy = y % 7 - 3.5
        fine = dx**2 + dy**2 < 2.5**2
    elif name == "chalk":
        fine = ((x - y) % 6) < 3
    else:
        raise KeyError(name)
    coarse = fine.reshape(height, factor, width, factor).mean(axis=(1, 3))
    return frozen(coarse.astype(np.float32))


def bold_font(pixels: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in scalable font (Aileron), so that letters are the same on every machine."""
    font = ImageFont.load_default(pixels)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


@lru_cache(maxsize=512)
def word_mask(word: str, width: int, height: int, scale: float) -> Mask:
    """Bold letters, each centred in a slot of fixed width; the word is centred in [height, width]."""
    pen = Pen(width, height)
    pixels = round((36 if len(word) == 1 else 32) * scale * SUPERSAMPLE)
    font, pitch = bold_font(pixels), 26.5 * scale
    for i, letter in enumerate(word):
        x = width / 2 + (i - (len(word) - 1) / 2) * pitch
        stroke = round(0.9 * scale * SUPERSAMPLE)
        _, top, _, bottom = font.getbbox("H", anchor="ms")
        baseline = height / 2 * SUPERSAMPLE - (top + bottom) / 2
        pen.draw.text(
            (x * SUPERSAMPLE, baseline), letter, fill=255, font=font, anchor="ms", stroke_width=stroke
        )
    return pen.mask()


@lru_cache(maxsize=16)
def sign_masks(scale: float) -> tuple[Mask, Mask]:
    """(board with frame, board without frame) of the sign."""
    width, height = round(SIGN_SIZE[0] * scale), round(SIGN_SIZE[1] * scale)
    line = OUTLINE * scale
    outer, inner = Pen(width, height), Pen(width, height)
    outer.box(0, 0, width - 0.3, height - 0.3, 6 * scale)
    inner.box(line, line, width - 0.3 - line, height - 0.3 - line, 5 * scale)
    return outer.mask(), inner.mask()


def body_parts(pen: Pen, body: str, head: str, pose: str, scale: float, grow: float) -> None:
    """Draws the silhouette of a character: legs, arms, ears and trunk, all `grow` pixels wider."""
    s = scale

    def capsule(x0: float, y0: float, x1: float, y1: float, r: float) -> None:
        pen.capsule((x0 * s, y0 * s), (x1 * s, y1 * s), r * s, grow)

    for side in (-1, 1):
        capsule(40 + 11 * side, 86, 40 + 11 * side, 103, 5.2)
        capsule(40 + 11 * side, 104, 40 + 15 * side, 104, 4.8)
        raised = pose == "up" or (pose == "waving" and side == 1)
        capsule(40 + 20 * side, 68, 40 + 33 * side, 46 if raised else 88, 4.6)
        if head == "ears":
            pen.ellipse((40 + 17 * side) * s, 30 * s, 9 * s, 9 * s, grow)
        elif head == "points":
            tip = [(40 + x * side, y) for x, y in ((6, 34), (22, 44), (23, 15))]
            pen.polygon([(x * s, y * s) for x, y in tip], grow)
        elif head == "antennae":
            capsule(40 + 8 * side, 40, 40 + 14 * side, 19, 1.6)
            pen.ellipse((40 + 14 * side) * s, 17 * s, 5 * s, 5 * s, grow)
    if body == "round":
        pen.ellipse(40 * s, 64 * s, 27 * s, 30 * s, grow)
    elif body == "square":
        pen.box(15 * s, 36 * s, 65 * s, 93 * s, 8 * s, grow)
    else:
        pen.ellipse(40 * s, 52 * s, 20 * s, 19 * s, grow)
        pen.ellipse(40 * s, 74 * s, 28 * s, 21 * s, grow)
        pen.polygon([(x * s, y * s) for x, y in ((21, 56), (59, 56), (67, 70), (13, 70))], grow)


@lru_cache(maxsize=256)
def character_masks(body: str, head: str, pose: str, scale: float) -> dict[str, Mask]:
    """Silhouette with outline ("outer") and without ("inner"), and the hat ("dark"), each [112, 80] x scale."""
    size = round(CHARACTER_SIZE[0] * scale), round(CHARACTER_SIZE[1] * scale)
    outer, inner, dark = Pen(*size), Pen(*size), Pen(*size)
    body_parts(outer, body, head, pose, scale, OUTLINE * scale)
    body_parts(inner, body, head, pose, scale, 0)
    if head == "hat":
        for x0, y0, x1, y1 in ((20, 32, 60, 39), (27, 11, 53, 36)):
            dark.box(x0 * scale, y0 * scale, x1 * scale, y1 * scale, 2 * scale)
    return {"outer": outer.mask(), "inner": inner.mask(), "dark": dark.mask()}


@lru_cache(maxsize=64)
def face_masks(eyes: int, belly: str, scale: float) -> dict[str, Mask]:
    """ "white" (belly and whites of the eyes), "rim" (around the eyes) and "dark" (pupils and mouth)."""
    size = round(CHARACTER_SIZE[0] * scale), round(CHARACTER_SIZE[1] * scale)
    white, rim, dark, s = Pen(*size), Pen(*size), Pen(*size), scale
    places: dict[int, list[tuple[float, float, float]]] = {
        1: [(0, 50, 9.5)],
        2: [(-9, 51, 7), (9, 51, 7)],
        3: [(-12.5, 53, 5.5), (0, 47, 5.5), (12.5, 53, 5.5)],
    }
    for dx, y, radius in places[eyes]:
        rim.ellipse((40 + dx) * s, y * s, (radius + 1.2) * s, (radius + 1.2) * s)
        white.ellipse((40 + dx) * s, y * s, radius * s, radius * s)
        dark.ellipse((40 + dx) * s, (y + 0.5) * s, 0.5 * radius * s, 0.5 * radius * s)
    arc = [x * s * SUPERSAMPLE for x in (32, 56, 48, 68)]
    dark.draw.arc(arc, 20, 160, fill=255, width=round(2 * s * SUPERSAMPLE))
    if belly == "patch":
        white.ellipse(40 * s, 81 * s, 13 * s, 8.5 * s)
    elif belly == "bars":
        for y in (74, 83):
            white.box(27 * s, y * s, 53 * s, (y + 5) * s, 2.5 * s)
    return {"white": white.mask(), "rim": rim.mask(), "dark": dark.mask()}


@lru_cache(maxsize=16)
def night_sky(width: int, height: int, scale: float) -> Mask:
    """Small stars in the gaps between the nine places of objects."""
    pen = Pen(width, height)
    for x, y, radius in (
        (44, 8, 1.7),
        (84, 40, 2.1),
        (6, 46, 1.7),
        (122, 6, 2.1),
        (44, 86, 1.7),
        (123, 84, 1.7),
        (83, 122, 1.7),
    ):
        pen.ellipse(x / 128 * width, y / 128 * height, radius * scale, radius * scale)
    return pen.mask()


def paint(canvas: Canvas, mask: Mask, colour: Colour, x: int, y: int) -> None:
    """Blends `colour` into `canvas` [H, W, 3] through `mask`, whose top left corner is at (x, y)."""
    view, part = overlap(canvas, mask, x, y)
    if part.size:
        view += (np.asarray(colour, dtype=np.float32) - view) * part[..., None]


def overlap(canvas: NDArray[np.float32], mask: Mask, x: int, y: int) -> tuple[NDArray[np.float32], Mask]:
    """The overlapping parts of `canvas` and `mask` when the mask's top left corner is at (x, y)."""
    height, width = canvas.shape[:2]
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(mask.shape[0], height - y), min(mask.shape[1], width - x)
    if bottom <= top or right <= left:
        return canvas[:0, :0], mask[:0, :0]
    return canvas[y + top : y + bottom, x + left : x + right], mask[top:bottom, left:right]
