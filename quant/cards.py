"""Cards by name: memory, bandwidth, and how fast their tensor cores multiply in each format, as NVIDIA publishes them.

Rates are dense, at the boost clock, adding up in FP32 (INT32 for INT8), from the operations of an SM in a cycle.
Sources: NVIDIA's architecture whitepapers (Turing TU102, Ampere GA100 and GA102, Ada AD102, Hopper GH100, RTX Blackwell
GB202) and each card's product page. Nothing here was measured.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import KontextError

SM_OPERATIONS: Mapping[int, Mapping[str, int]] = {
    75: {"fp16": 1024, "int8": 2048},
    80: {"fp16": 2048, "bf16": 2048, "int8": 4096},
    86: {"fp16": 1024, "bf16": 1024, "int8": 2048},
    89: {"fp16": 1024, "bf16": 1024, "fp8": 2048, "int8": 2048},
    90: {"fp16": 4096, "bf16": 4096, "fp8": 8192, "int8": 8192},
    120: {"fp16": 1024, "bf16": 1024, "fp8": 2048, "int8": 2048, "nvfp4": 4096},
}
"""Compute capability times ten → format of both factors → multiplications and additions of an SM in a cycle."""

HALVED = ("fp16", "bf16", "fp8")
"""Formats in which GeForce cards add up in FP32 at half the rate."""


@dataclass(frozen=True)
class Card:
    """A card. `processors` are its SMs, `clock` their boost clock in Hz, `memory` bytes, `bandwidth` bytes a second."""

    name: str
    capability: int
    processors: int
    clock: float
    memory: int
    bandwidth: float

    @property
    def is_geforce(self) -> bool:
        return self.name.startswith("RTX")

    def rate(self, format: str) -> float | None:
        """Operations a second of products in a format; None if its tensor cores lack it."""
        operations = SM_OPERATIONS[self.capability].get(format)
        if operations is None:
            return None
        half = 2 if self.is_geforce and format in HALVED else 1
        return operations * self.processors * self.clock / half


def card(name: str, capability: int, processors: int, megahertz: int, gigabytes: int, bandwidth: int) -> Card:
    """`gigabytes` as cards are sold, which are GiB; `bandwidth` in GB/s."""
    return Card(name, capability, processors, megahertz * 1e6, gigabytes << 30, bandwidth * 1e9)


CARDS = (
    card("RTX 2060", 75, 30, 1680, 6, 336), card("RTX 2070", 75, 36, 1620, 8, 448),
    card("RTX 2080", 75, 46, 1710, 8, 448), card("RTX 2080 Ti", 75, 68, 1545, 11, 616),
    card("T4", 75, 40, 1590, 16, 320),
    card("A100", 80, 108, 1410, 80, 2039),
    card("RTX 3060", 86, 28, 1777, 12, 360), card("RTX 3060 Ti", 86, 38, 1665, 8, 448),
    card("RTX 3070", 86, 46, 1725, 8, 448), card("RTX 3080", 86, 68, 1710, 10, 760),
    card("RTX 3080 Ti", 86, 80, 1665, 12, 912), card("RTX 3090", 86, 82, 1695, 24, 936),
    card("RTX 3090 Ti", 86, 84, 1860, 24, 1008),
    card("RTX 4060", 89, 24, 2460, 8, 272), card("RTX 4060 Ti", 89, 34, 2535, 8, 288),
    card("RTX 4060 Ti 16GB", 89, 34, 2535, 16, 288), card("RTX 4070", 89, 46, 2475, 12, 504),
    card("RTX 4070 Super", 89, 56, 2475, 12, 504), card("RTX 4070 Ti", 89, 60, 2610, 12, 504),
    card("RTX 4070 Ti Super", 89, 66, 2610, 16, 672), card("RTX 4080", 89, 76, 2505, 16, 717),
    card("RTX 4080 Super", 89, 80, 2550, 16, 736), card("RTX 4090", 89, 128, 2520, 24, 1008),
    card("L4", 89, 58, 2040, 24, 300), card("L40S", 89, 142, 2520, 48, 864),
    card("H100", 90, 132, 1830, 80, 3350), card("H200", 90, 132, 1830, 141, 4800),
    card("RTX 5060", 120, 30, 2497, 8, 448), card("RTX 5060 Ti", 120, 36, 2572, 8, 448),
    card("RTX 5060 Ti 16GB", 120, 36, 2572, 16, 448), card("RTX 5070", 120, 48, 2512, 12, 672),
    card("RTX 5070 Ti", 120, 70, 2452, 16, 896), card("RTX 5080", 120, 84, 2617, 16, 960),
    card("RTX 5090", 120, 170, 2407, 32, 1792),
)  # fmt: skip


def short_name(text: str) -> str:
    """A name as it is compared: "GeForce RTX 4090" and "4090" are one."""
    return re.sub(r"[\s_-]|nvidia|geforce|rtx", "", text.lower())


def find_card(text: str) -> Card:
    """The card that `text` names: RTX 4090, 4090, rtx-4060-ti-16gb.

    Raises:
        KontextError: unknown; the message has the nearest names.
    """
    known = {short_name(each.name): each for each in CARDS}
    word = short_name(text)
    if word in known:
        return known[word]
    full = {
        f"{name}{each.memory >> 30}gb": each for name, each in known.items()
    }  # with the memory that it has anyway
    if word in full:
        return full[word]
    near = [each.name for name, each in known.items() if len(name) > 3 and word.startswith(name)]
    near += [known[name].name for name in difflib.get_close_matches(word, known, 3, 0.5)]
    if not near:
        near = ["RTX 3060", "RTX 4090", "RTX 5090"]
    raise KontextError(
        f"unknown card {text!r}: nearest are {', '.join(dict.fromkeys(near))}; for others, kontext-export --fit SIZE "
        "--gpu sm_XX plans by memory"
    )
