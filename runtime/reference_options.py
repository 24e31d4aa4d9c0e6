"""What users say about sizes and references, in words: by which method they are placed, what they are encoded at.

Command lines read this before anything heavy is imported; `references` does what the words say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from ..errors import KontextError

REFERENCE_METHODS = ("index", "offset", "stitch")
"""How several references are placed."""

ReferenceSize: TypeAlias = "str | tuple[int, int]"
"""What references are encoded at: "output" (the output's size), "preferred" (the preferred size nearest to the
picture's aspect), (width, height), or "auto": the output's size if it has the picture's aspect, else the preferred."""

SIZE_RULES = ("auto", "preferred", "output")


def parse_size(text: str) -> tuple[int, int] | None:
    """(width, height) of "1024x768", which may be negative; None for any other text."""
    found = re.fullmatch(r"(-?[0-9]{1,9})x(-?[0-9]{1,9})", text, re.IGNORECASE)
    return None if found is None else (int(found[1]), int(found[2]))


def parse_rule(text: str) -> ReferenceSize:
    """What references are encoded at, in words or as "1024x768". Raises KontextError for any other text."""
    if text in SIZE_RULES:
        return text
    size = parse_size(text)
    if size is None:
        raise KontextError(
            f"the reference size must be {one_of((*SIZE_RULES, 'WIDTHxHEIGHT'))}, not {text!r:.40}"
        )
    return size


def usual_sizes(rule: ReferenceSize | None, method: str | None) -> bool:
    """Whether references are encoded at the model's preferred sizes, unless the output has another: then large files
    may be decoded smaller. `rule` may be a text that `parse_rule` refuses."""
    return (rule is None or rule in SIZE_RULES) and method != "stitch"


def one_of(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
