"""The picture sizes that a model works best at, from the side of the square that it was trained at."""

from __future__ import annotations

import math

FLUX_SIDE = 1024

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
"""Width and height of FLUX.1 Kontext's own sizes (black-forest-labs/flux, PREFERED_KONTEXT_RESOLUTIONS)."""


def preferred_sizes(side: int, multiple: int) -> list[tuple[int, int]]:
    """FLUX's aspect ratios at an area of about side², each side a multiple of `multiple`; narrow ones
    first."""
    if side == FLUX_SIDE and multiple == 16:
        return list(FLUX_SIZES)
    sizes = []
    for width, height in FLUX_SIZES:
        ratio = width / height
        ideal = (side * math.sqrt(ratio) / multiple, side / math.sqrt(ratio) / multiple)
        candidates = [
            (max(w, 1), max(h, 1))
            for w in (math.floor(ideal[0]), math.ceil(ideal[0]))
            for h in (math.floor(ideal[1]), math.ceil(ideal[1]))
        ]
        best = min(
            candidates,
            key=lambda size: (
                abs(math.log(size[0] * size[1] / (ideal[0] * ideal[1])))
                + abs(math.log(size[0] / size[1] / ratio))
            ),
        )
        sizes.append((best[0] * multiple, best[1] * multiple))
    return sorted(set(sizes))
