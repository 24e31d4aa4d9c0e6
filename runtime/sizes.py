"""Sizes in pixels: what a bundle's networks take, and what is nearest to a size that they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

from ..errors import KontextError
from .images import Size, preferred_size
from .sampler_entry import SamplerEntry

MAX_AREAS = 16
"""An output may have this many times the area of the model's largest preferred size; more is taken for a typo."""


def checked_size(size: Size, settings: SamplerEntry, name: str = "size") -> Size:
    """`size` as (width, height) of plain integers. Raises KontextError, which calls it `name`, if no network takes
    it."""
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or not all(isinstance(side, Integral) for side in size)
    ):
        raise KontextError(f"{name} must be (width, height) in pixels, such as (1024, 768), not {size!r}")
    width, height = size
    multiple = settings.size_multiple
    if min(size) < 1:
        raise KontextError(f"{name} {width}x{height}: width and height must be above 0")
    largest = max(width * height for width, height in settings.preferred_sizes)
    if width * height > MAX_AREAS * largest:
        usual = preferred_size(size, settings.preferred_sizes)
        raise KontextError(
            f"{name} {width}x{height} is more than {MAX_AREAS} times as large as this model's pictures: "
            f"{usual[0]}x{usual[1]} is usual"
        )
    if width % multiple or height % multiple:
        raise KontextError(
            f"{name} {width}x{height}: both sides must be multiples of {multiple}; "
            f"the nearest is {nearest(width, multiple)}x{nearest(height, multiple)}"
        )
    return int(width), int(height)


def nearest(side: float, multiple: int) -> int:
    """The multiple of `multiple` that is nearest to a side, at least one."""
    return max(1, math.floor(side / multiple + 0.5)) * multiple


def distortion(size: Size, other: Size) -> float:
    """How much a picture of `size` is stretched in one direction when it is resized to `other`; 1: not at all."""
    ratio = (size[0] * other[1]) / (size[1] * other[0])
    return max(ratio, 1 / ratio)


def similar_size(aspect: Size, area: Size, multiple: int) -> Size:
    """The size in multiples of `multiple` with about the aspect ratio of `aspect` and the area of `area`."""
    pixels = area[0] * area[1]
    width = math.sqrt(pixels * aspect[0] / aspect[1])
    height = math.sqrt(pixels * aspect[1] / aspect[0])
    return nearest(width, multiple), nearest(height, multiple)
