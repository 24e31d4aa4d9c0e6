"""Sizes of memory as people write them."""

from __future__ import annotations

import math
import re

from ..errors import KontextError

UNITS = {"b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str, flag: str = "") -> int:
    """Bytes of a size of memory: 12GB is 12 · 10^9, 12GiB is 12 · 2^30; fractions are allowed.

    Args:
        text: a number with a unit; B is for bytes.
        flag: whose value it is, for messages.

    Raises:
        KontextError: `text` is not a size, has no unit, or is less than one byte.
    """
    text = text.strip()
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmg]i?)b?|(b))?", text.lower())
    where = f"{flag} {text}: " if flag else ""
    if not match:
        raise KontextError(f"{where}{text!r} is not a size of memory: write 12GB, 11.5GiB or 900MB")
    number, unit = match[1], match[2] or match[3]
    if unit is None and float(number):
        where = where or f"{text} is a size without a unit: "
        raise KontextError(f"{where}say {number}GB or {number}GiB")
    size = float(number) * UNITS[unit or "b"]
    if not 0 < size < math.inf or int(size) == 0:
        raise KontextError(f"{where}a memory budget must be more than 0, not {text}")
    return int(size)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
