"""NVIDIA's compute capabilities as whole numbers: 89 stands for 8.9, which is Ada.

Flags, plans and kernels call it sm_89, compiled engines sm89; whatever a user types is understood in every spelling.
"""

from __future__ import annotations

import re

from .errors import KontextError


def parse_capability(text: str) -> int | None:
    """The capability that `text` names, as sm_89, sm89, 8.9 or 89 (sm_90a is 90); None for anything else."""
    match = re.fullmatch(r"(?:sm[_\s-]?)?(\d{2,3})[af]?|(\d{1,2})\.(\d)", text.strip().lower())
    return int("".join(filter(None, match.groups()))) if match else None


def parse_capabilities(text: str) -> tuple[int, ...]:
    """The capabilities of a list such as "sm_86,sm_89", each once.

    Raises:
        KontextError: one of them is no compute capability.
    """
    found = []
    for part in text.split(","):
        capability = parse_capability(part)
        if capability is None:
            raise KontextError(f"{part.strip()!r} is not a GPU architecture such as sm_89 or 8.9")
        found.append(capability)
    return tuple(dict.fromkeys(found))


def sm_name(capability: int) -> str:
    """sm_89."""
    return f"sm_{capability}"


def engine_target(capability: int) -> str:
    """sm89: how manifest.json's engines and their folders spell it."""
    return f"sm{capability}"


def dotted(capability: int) -> str:
    """8.9."""
    return f"{capability // 10}.{capability % 10}"
