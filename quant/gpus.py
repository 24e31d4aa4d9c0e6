"""GPUs that a plan can be made for, by name or architecture, and the number formats that each runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..compute_capability import parse_capability, sm_name
from ..errors import KontextError
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

GPUS = {
    "t4": 75, "rtx2060": 75, "rtx2070": 75, "rtx2080": 75, "rtx2080ti": 75,
    "a100": 80, "a30": 80,
    "a10": 86, "a10g": 86, "a40": 86, "rtxa4000": 86, "rtxa5000": 86, "rtxa6000": 86,
    "rtx3060": 86, "rtx3070": 86, "rtx3080": 86, "rtx3080ti": 86, "rtx3090": 86, "rtx3090ti": 86,
    "orin": 87,
    "l4": 89, "l40": 89, "l40s": 89, "rtx4060": 89, "rtx4060ti": 89, "rtx4070": 89, "rtx4070ti": 89,
    "rtx4080": 89, "rtx4090": 89, "rtx6000ada": 89,
    "h100": 90, "h200": 90, "gh200": 90,
    "b200": 100, "gb200": 100, "b300": 103,
    "rtx5060": 120, "rtx5060ti": 120, "rtx5070": 120, "rtx5070ti": 120, "rtx5080": 120, "rtx5090": 120,
    "gb10": 121,
}  # fmt: skip
"""Cards by name → compute capability times ten (NVIDIA's table of CUDA GPUs)."""


def find_target(text: str) -> Target:
    """The target that `text` names: "cpu", an architecture (sm_89, 8.9) or a card (RTX 4090).

    Raises:
        KontextError: unknown; the message says what is known.
    """
    word = re.sub(r"[\s_-]|nvidia|geforce", "", text.lower())
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
