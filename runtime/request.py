"""The request of an edit: arguments checked, defaults filled in, one row for each picture to make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias

from PIL import Image

from ..errors import KontextError
from .images import Size, preferred_size
from .noise import check_seed
from .rgb import upright_rgb
from .sampler_entry import SamplerEntry

References: TypeAlias = "Image.Image | Sequence[Image.Image]"
Images: TypeAlias = "References | Sequence[References | None] | None"

MAX_AREAS = 16
"""An output may have this many times the area of the model's largest preferred size; more is taken for a typo."""


@dataclass(frozen=True)
class Reference:
    """A picture, upright and in RGB, and the (width, height) to encode it at."""

    picture: Image.Image
    size: Size


@dataclass(frozen=True)
class Row:
    """One picture to make."""

    prompt: str
    references: tuple[Reference, ...]
    seed: int
    size: Size

    @property
    def shape(self) -> tuple[Size, ...]:
        """The output's and the references' sizes; rows of one shape can run as one batch."""
        return (self.size, *(reference.size for reference in self.references))


@dataclass(frozen=True)
class Request:
    rows: tuple[Row, ...]
    steps: int
    guidance: float

    def batches(self) -> list[list[int]]:
        """Indices of the rows that run together, ordered by their first row."""
        groups: dict[tuple[Size, ...], list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(row.shape, []).append(index)
        return list(groups.values())


def build_request(
    settings: SamplerEntry,
    image: Images,
    prompt: str | Sequence[str],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    size: Size | None = None,
    num_images: int = 1,
) -> Request:
    """The request that these arguments of `Pipeline.edit` make. Raises KontextError if one of them is wrong."""
    steps = whole(settings.steps if steps is None else steps, "steps")
    num_images = whole(num_images, "num_images")
    guidance = settings.guidance if guidance is None else guidance
    if not math.isfinite(guidance):
        raise KontextError(f"guidance must be a finite number, not {guidance}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise KontextError("prompt is an empty list: give at least one prompt")
    if size is not None:
        size = checked_size(size, settings)
    rows: list[Row] = []
    for text, pictures in zip(prompts, pictures_of(image, prompt), strict=True):
        references = tuple(
            Reference(picture, preferred_size(picture, settings.preferred_sizes)) for picture in pictures
        )
        for _ in range(num_images):
            rows.append(Row(text, references, seed + len(rows), size or default_size(settings, references)))
    check_seed(rows[0].seed)
    check_seed(rows[-1].seed)
    return Request(tuple(rows), steps, float(guidance))


def whole(value: object, name: str) -> int:
    if not isinstance(value, Integral) or int(value) < 1:
        raise KontextError(f"{name} must be a whole number of 1 or more, not {value!r}")
    return int(value)


def checked_size(size: Size, settings: SamplerEntry) -> Size:
    multiple = settings.size_multiple
    if any(side < multiple or side % multiple for side in size):
        raise KontextError(f"size {size[0]}x{size[1]}: both sides must be multiples of {multiple}")
    largest = max(width * height for width, height in settings.preferred_sizes)
    if size[0] * size[1] > MAX_AREAS * largest:
        raise KontextError(
            f"size {size[0]}x{size[1]} is more than {MAX_AREAS} times as large as this model's pictures "
            f"({largest / 1e6:.2g} million pixels)"
        )
    return int(size[0]), int(size[1])


def default_size(settings: SamplerEntry, references: Sequence[Reference]) -> Size:
    """The first reference's size, or the preferred size that is nearest to a square."""
    if references:
        return references[0].size
    return min(settings.preferred_sizes, key=lambda size: abs(size[0] - size[1]))


def pictures_of(image: Images, prompt: str | Sequence[str]) -> list[list[Image.Image]]:
    """The references of each prompt, upright and in RGB; a picture that is used several times is converted once."""
    converted: dict[int, Image.Image] = {}

    def convert(entry: References | None) -> list[Image.Image]:
        if entry is None:
            return []
        pictures = [entry] if isinstance(entry, Image.Image) else list(entry)
        for picture in pictures:
            if id(picture) not in converted:
                converted[id(picture)] = upright_rgb(picture)
        return [converted[id(picture)] for picture in pictures]

    if isinstance(prompt, str):
        return [convert(image)]  # type: ignore[arg-type]  # upright_rgb refuses lists of lists
    if image is None or isinstance(image, Image.Image):
        return [convert(image) for _ in prompt]
    if len(image) != len(prompt):
        raise KontextError(
            f"{len(prompt)} prompts need one picture for all or {len(prompt)} entries, not {len(image)}"
        )
    return [convert(entry) for entry in image]
