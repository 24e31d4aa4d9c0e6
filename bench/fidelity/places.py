"""Places of entries within their class, at no more bits, and which are the best of a class.

Entries whose paired difference's interval contains 0 are not called different: they share a place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .intervals import difference
from .schemes import UNQUANTIZED

RANKED = ("velocity_snr", "psnr")
"""Figures by which entries are ranked; more is better."""

SAME_BITS = 0.005
"""Bits per weight that do not count as more."""

Entries = Mapping[str, dict[str, Any]]


def rank(entries: Entries) -> None:
    """Adds to each entry `places`, figure → such as "1" or "2=", and `best`, the figures that none in its class has a
    better value of."""
    for members in classes(entries).values():
        for figure in RANKED:
            better = compared(members, figure)
            for name, entry in members.items():
                entry.setdefault("places", {})[figure] = place(name, members, better)
                if not any(better[other, name] for other in members):
                    entry.setdefault("best", []).append(figure)


def classes(entries: Entries) -> dict[str, dict[str, dict[str, Any]]]:
    """Class → its entries, of those that can be ranked."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, entry in entries.items():
        if entry["scheme"] != UNQUANTIZED and entry["bits_per_weight"] is not None:
            found.setdefault(entry["scheme"], {})[name] = entry
    return found


def compared(members: Entries, figure: str) -> dict[tuple[str, str], bool]:
    """(entry, other) → whether the first is better, and not by chance."""
    names = list(members)
    better = dict.fromkeys(((one, other) for one in names for other in names), False)
    for index, one in enumerate(names):
        for other in names[:index]:
            interval = difference(members[one], members[other], figure)
            if interval is not None:
                better[one, other], better[other, one] = interval[0] > 0, interval[1] < 0
    return better


def place(name: str, members: Entries, better: Mapping[tuple[str, str], bool]) -> str:
    """One more than there are better entries at no more bits; shared where another of these is not different."""
    most = members[name]["bits_per_weight"] + SAME_BITS
    rivals = [each for each in members if each != name and members[each]["bits_per_weight"] <= most]
    ahead = sum(better[each, name] for each in rivals)
    shared = any(not better[each, name] and not better[name, each] for each in rivals)
    return f"{1 + ahead}{'=' if shared else ''}"
