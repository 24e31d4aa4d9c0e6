"""Pictures small enough for one page: WebP as data URIs at the best size and quality that fits, and heat maps.

A heat map is computed from the pictures as they were written, not from what the page shows of them.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageChops
from tqdm import tqdm

from ...errors import KontextError
from ..machine import usable_cores
from ..pictures import read_named
from .edits import Edit

MOST_BYTES = 10_000_000
"""Of all pictures of a page; as data URIs they take a third more."""

LEVELS = (
    *((1536, 92), (1024, 90), (1024, 80), (768, 80), (640, 75), (512, 75), (512, 60)),
    *((384, 60), (256, 60), (256, 40), (192, 40), (128, 40), (96, 30), (64, 20)),
)
"""(longest side in pixels, WebP quality), the best first. The last one fits 50 edits of 100 bundles."""

HEAT_QUALITY = 60
"""At most: small differences are noise, which takes more bytes than a picture."""

SAMPLE = 6
"""Edits that the level is chosen by."""

SCALES = (4, 8, 16, 32, 64, 128, 255)
"""Differences of 255 that are shown in the brightest colour."""


@dataclass(frozen=True)
class Shrunk:
    """A picture for the page: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class ShrunkEdit:
    """The pictures of an edit; outputs and heat maps by bundle or peer."""

    edit: Edit
    source: Shrunk | None
    reference: Shrunk | None
    outputs: dict[str, Shrunk]
    heat: dict[str, Shrunk]


@dataclass(frozen=True)
class Gallery:
    """Edits with pictures that fit together; `scale` is the difference in the heat maps' brightest colour."""

    edits: list[ShrunkEdit]
    scale: int
    side: int
    missing: list[str]
    """A line for each edit that has no pictures."""


def shrink(edits: Sequence[Edit], budget: int = MOST_BYTES) -> Gallery:
    """Reads, scales and encodes all pictures so that they take at most `budget` bytes together."""
    scale = heat_scale(edits)
    sample = [edits[round(place)] for place in np.linspace(0, len(edits) - 1, min(SAMPLE, len(edits)))]
    decoded = [each for each in map(decode, sample) if isinstance(each, DecodedEdit)]
    start = next(
        (
            level
            for level in LEVELS[:-1]
            if sum(size_of(encode(each, scale, level)) for each in decoded) * len(edits)
            <= 0.9 * budget * len(decoded)
        ),
        LEVELS[-1],
    )
    for level in LEVELS[LEVELS.index(start) :]:
        every = encode_all(edits, scale, level)
        found = [each for each in every if isinstance(each, ShrunkEdit)]
        if sum(map(size_of, found)) <= budget:
            break
    return Gallery(found, scale, level[0], [each for each in every if isinstance(each, str)])


def encode_all(edits: Sequence[Edit], scale: int, level: tuple[int, int]) -> list[ShrunkEdit | str]:
    """All edits at a level, on all processors: Pillow lets go of Python's lock. For one without pictures, why."""

    def work(edit: Edit) -> ShrunkEdit | str:
        decoded = decode(edit)
        return decoded if isinstance(decoded, str) else encode(decoded, scale, level)

    with ThreadPoolExecutor(usable_cores()) as pool:
        each = pool.map(work, edits)
        return list(tqdm(each, "pictures", len(edits), unit="edit", disable=not sys.stderr.isatty()))


@dataclass(frozen=True)
class DecodedEdit:
    """The pictures of an edit in RGB, and the differences of outputs from the reference, in grey."""

    edit: Edit
    source: PIL.Image.Image | None
    reference: PIL.Image.Image | None
    outputs: dict[str, PIL.Image.Image]
    apart: dict[str, PIL.Image.Image]


def decode(edit: Edit) -> DecodedEdit | str:
    """The pictures of an edit; if one is missing, which."""
    try:
        source, reference = (
            None if name is None else read_named(edit.folder, name) for name in (edit.source, edit.reference)
        )
        outputs = {each.entry: read_named(edit.folder, each.picture) for each in edit.outputs}
    except KontextError as fault:
        return str(fault)
    apart = {
        name: difference(picture, reference)
        for name, picture in outputs.items()
        if reference is not None and picture.size == reference.size
    }
    return DecodedEdit(edit, source, reference, outputs, apart)


def difference(picture: PIL.Image.Image, reference: PIL.Image.Image) -> PIL.Image.Image:
    """The largest absolute difference of the three channels, in grey."""
    red, green, blue = ImageChops.difference(picture, reference).split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def heat_scale(edits: Sequence[Edit]) -> int:
    """A scale for all heat maps on which the worst edit is bright: four times the root mean square of its error."""
    worst = min((edit.worst() for edit in edits), default=1e9)
    rms = 255 * 10 ** (-worst / 20)
    return next((each for each in SCALES if each >= 4 * rms), SCALES[-1])


def heat_map(apart: PIL.Image.Image, scale: int) -> PIL.Image.Image:
    """Differences in colour: 0 is black, `scale` or more the brightest colour, a quarter of it half as bright, so that
    small differences are seen beside large ones."""
    levels = (255 * np.sqrt(np.minimum(np.arange(256) / scale, 1))).astype(np.uint8)
    coloured = apart.copy()
    coloured.putpalette(colours()[levels].tobytes())
    return coloured.convert("RGB")


@cache
def colours() -> NDArray[np.uint8]:
    """The 256 colours of matplotlib's map inferno, [256, 3]."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.arange(256))[:, :3] * 255, np.uint8)


def encode(each: DecodedEdit, scale: int, level: tuple[int, int]) -> ShrunkEdit:
    """All pictures of an edit get the size of its reference or of its first output, as the model stretches a source."""
    first = each.reference or next(iter(each.outputs.values()), None)
    size = None if first is None else fitting(first.size, level[0])
    heat = (level[0], min(level[1], HEAT_QUALITY))
    return ShrunkEdit(
        each.edit,
        None if each.source is None else webp(each.source, size, level),
        None if each.reference is None else webp(each.reference, size, level),
        {name: webp(picture, size, level) for name, picture in each.outputs.items()},
        {
            name: webp(heat_map(resized(apart, size, level), scale), size, heat)
            for name, apart in each.apart.items()
        },
    )


def fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """`size` with its longest side reduced to `side` if it is longer."""
    share = min(1.0, side / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def resized(
    picture: PIL.Image.Image, size: tuple[int, int] | None, level: tuple[int, int]
) -> PIL.Image.Image:
    target = size or fitting(picture.size, level[0])
    return picture if picture.size == target else picture.resize(target, PIL.Image.Resampling.BICUBIC)


def webp(picture: PIL.Image.Image, size: tuple[int, int] | None, level: tuple[int, int]) -> Shrunk:
    picture = resized(picture, size, level)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=level[1], method=2)
    return Shrunk(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", *picture.size)


def size_of(each: ShrunkEdit) -> int:
    """Bytes of the encoded files."""
    every = [each.source, each.reference, *each.outputs.values(), *each.heat.values()]
    return sum(len(picture.uri) * 3 // 4 for picture in every if picture is not None)
