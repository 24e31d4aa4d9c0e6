"""What a plan is for: the GPU's architecture and the number formats that it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..compute_capability import parse_capability, sm_name
from ..errors import KontextError


@dataclass(frozen=True)
class Target:
    """`name` is "sm_89" or "cpu"; `formats` are the quantized formats that run there, those of fewest bits last."""

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
"""Compute capabilities, times ten, that are planned for."""

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

ANYWHERE = ("int8", "int4", "uint4", "nf4")
"""Formats that any target unpacks while it computes."""

ON_CPU = ("int8", "int4")
"""Formats that ONNX Runtime multiplies on a CPU without unpacking them, and whose memory there was measured."""

FP8_FROM, FP4_FROM = 89, 100
"""The first architectures with E4M3 and with E2M1 in their tensor cores."""


def find_target(text: str) -> Target:
    """The target that `text` names: "cpu", an architecture (sm_89, 8.9) or a card (RTX 4090).

    Raises:
        KontextError: it names none; the message says what would.
    """
    word = re.sub(r"[\s_-]|nvidia|geforce", "", text.lower())
    if word == "cpu":
        return Target("cpu", ON_CPU)
    capability = parse_capability(word) or GPUS.get(word, 0)
    if capability not in ARCHITECTURES:
        known = ", ".join(map(sm_name, ARCHITECTURES))
        raise KontextError(
            f"GPU {text!r} is not known: name an architecture ({known}), a card such as RTX 4090, or cpu"
        )
    formats: tuple[str, ...] = ANYWHERE
    if capability >= FP8_FROM:
        formats = ("fp8", *formats)
    if capability >= FP4_FROM:
        formats = (*formats, "nvfp4")
    return Target(sm_name(capability), formats)
