"""Sizes of memory as people write them."""

from __future__ import annotations

import math
import re

from ..errors import KontextError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Bytes of a size of memory: 12GB is 12 · 10^9, 12GiB is 12 · 2^30; fractions are allowed.

    Raises:
        KontextError: `text` is not a size, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmg]i?)b?|b)?\s*", text.lower())
    if not match:
        raise KontextError(f"{text!r} is not a size of memory: write 12GB, 11.5GiB or 900MB")
    size = float(match[1]) * UNITS[match[2] or ""]
    if not 0 < size < math.inf or int(size) == 0:
        raise KontextError(f"a memory budget must be more than 0, not {text.strip()}")
    return int(size)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
