"""Reads damaged pictures, as `test_pictures` asks: FIRST LAST PROGRESS, the last as in `try_all`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutated_pictures import mutated, samples
from trying import limit_memory, try_all

from kontext.runtime.images import read_picture
from kontext.runtime.rgb import upright_rgb

ADDRESS_SPACE = 6 << 30


def main(first: int, last: int, progress: Path) -> None:
    limit_memory(ADDRESS_SPACE)
    samples()
    try_all(
        lambda seed: mutated(seed)[1],
        lambda data: upright_rgb(read_picture(io.BytesIO(data), "it")),
        range(first, last),
        progress,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
