"""The manifest's `preview`: a linear map from latents to colours, for pictures of an edit that is not done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .fields import Fields, shown
from .manifest_ranges import RANGES

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class PreviewEntry:
    """Red, green and blue in [-1, 1] of a latent: the sum of its channels times their `factors`, plus `bias`."""

    factors: tuple[Colour, ...]
    """Of each latent channel."""
    bias: Colour


def read_preview(root: Fields, channels: int) -> PreviewEntry | None:
    """The manifest's `preview`; None if it has none, as bundles from before it was recorded.

    Args:
        root: the manifest.
        channels: of the latents.
    """
    if "preview" not in root.data:
        return None
    entry = root.group("preview")
    factors = entry.get("factors")
    if not isinstance(factors, list) or len(factors) != channels:
        raise entry.error("factors", f"must be a list of {channels} colours, one for each latent channel")
    return PreviewEntry(
        tuple(colour(each, lambda what: entry.error("factors", f"each {what}")) for each in factors),
        colour(entry.get("bias"), lambda what: entry.error("bias", what)),
    )


def colour(value: Any, error: Callable[[str], Exception]) -> Colour:
    low, high = RANGES["preview"]
    if (
        not isinstance(value, list)
        or len(value) != 3
        or any(type(each) not in (int, float) or not low <= each <= high for each in value)
    ):
        raise error(f"must be 3 numbers from {low:g} to {high:g}, not {shown(value)}")
    return float(value[0]), float(value[1]), float(value[2])
