"""The picture sizes that a model works best at, from the side of the square that it was trained on."""

from __future__ import annotations

import math

FLUX_SIDE = 1024
"""Side in pixels of the square that FLUX.1 Kontext was trained on."""

FLUX_SIZES = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)
"""FLUX.1 Kontext's (width, height) (black-forest-labs/flux, PREFERED_KONTEXT_RESOLUTIONS)."""


def preferred_sizes(side: int, multiple: int) -> list[tuple[int, int]]:
    """(width, height) of FLUX's aspect ratios at an area of about side², in multiples of `multiple`, narrow ones
    first."""
    if side == FLUX_SIDE and multiple == 16:
        return list(FLUX_SIZES)
    sizes = set()
    for width, height in FLUX_SIZES:
        if width <= height:  # the others are these with width and height swapped
            narrow, long = nearest(
                side * math.sqrt(width / height), side * math.sqrt(height / width), multiple
            )
            sizes |= {(narrow, long), (long, narrow)}
    return sorted(sizes)


def nearest(width: float, height: float, multiple: int) -> tuple[int, int]:
    """The size in multiples of `multiple` that is nearest to an ideal one in log area and log aspect ratio."""
    candidates = [
        (max(w, 1) * multiple, max(h, 1) * multiple)
        for w in (math.floor(width / multiple), math.ceil(width / multiple))
        for h in (math.floor(height / multiple), math.ceil(height / multiple))
    ]
    area, ratio = math.log(width * height), math.log(width / height)
    return min(
        candidates,
        key=lambda size: abs(math.log(size[0] * size[1]) - area) + abs(math.log(size[0] / size[1]) - ratio),
    )
