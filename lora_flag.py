"""The flag --lora FILE[:WEIGHT], of exports and of edits."""

from __future__ import annotations

import math
from pathlib import Path

from .errors import KontextError

MOST_WEIGHT = 1000
"""Far beyond what makes pictures: larger ones end in infinities."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that are not read, and no weights."""


def parse_lora_flag(text: str) -> tuple[Path, float]:
    """FILE[:weight] or FOLDER[:weight] → file and weight, 1 by default; a file's name may contain colons too.

    Raises:
        KontextError: the weight is not a number, or there is no file name.
    """
    file, colon, number = text.rpartition(":")
    # Text that ends like a file name is not a weight: C:\style.safetensors, a:b.safetensors.
    if not colon or Path(text).exists() or number.lower().endswith((".safetensors", *PICKLES)):
        file, number = text, "1"
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if file and MOST_WEIGHT < abs(weight) < math.inf:
        raise KontextError(f"--lora {text}: a weight is a number from -{MOST_WEIGHT} to {MOST_WEIGHT}")
    if not file or not math.isfinite(weight):
        raise KontextError(
            f"--lora {text}: {number!r} is not a weight: write FILE or FILE:WEIGHT, as in style.safetensors:0.8"
            if file
            else f"--lora {text!r} names no file: write FILE or FILE:WEIGHT, as in style.safetensors:0.8"
        )
    return Path(file), weight
