"""GPUs that a plan can be made for, by name or architecture, and the number formats that each runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..compute_capability import parse_capability, sm_name
from ..errors import KontextError
from .cards import CARDS, short_name
from .formats import FORMATS


@dataclass(frozen=True)
class Target:
    """`name` is "sm_89" or "cpu"; `formats` are the number formats that run there."""

    name: str
    formats: tuple[str, ...]

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


ARCHITECTURES = {
    75: "Turing",
    80: "Ampere (A100)",
    86: "Ampere",
    87: "Orin",
    89: "Ada",
    90: "Hopper",
    100: "Blackwell (B200)",
    103: "Blackwell (B300)",
    120: "Blackwell (RTX)",
    121: "Blackwell (GB10)",
}
"""Compute capabilities times ten that plans are made for."""

OTHER_GPUS = {
    "a30": 80,
    "a10": 86, "a10g": 86, "a40": 86, "a4000": 86, "a5000": 86, "a6000": 86,
    "orin": 87,
    "l40": 89, "6000ada": 89,
    "gh200": 90,
    "b200": 100, "gb200": 100, "b300": 103,
    "gb10": 121,
}  # fmt: skip
"""GPUs that are not among `cards.CARDS`, by `short_name` → compute capability times ten, of NVIDIA's list."""

GPUS = {**{short_name(card.name): card.capability for card in CARDS}, **OTHER_GPUS}


def find_target(text: str) -> Target:
    """The target that `text` names: "cpu", an architecture (sm_89, 8.9) or a card (RTX 4090).

    Raises:
        KontextError: unknown; the message says what is known.
    """
    word = short_name(text)
    if word == "cpu":
        return Target("cpu", tuple(name for name, each in FORMATS.items() if each.runs_on_cpu))
    capability = parse_capability(word) or GPUS.get(word, 0)
    if capability not in ARCHITECTURES:
        known = ", ".join(map(sm_name, ARCHITECTURES))
        raise KontextError(
            f"unknown GPU {text!r}: name an architecture ({known}), a card such as RTX 4090, or cpu"
        )
    runs = tuple(name for name, each in FORMATS.items() if capability >= each.min_capability)
    return Target(sm_name(capability), runs)
