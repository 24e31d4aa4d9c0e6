"""Confidence intervals of fidelity's figures over edits, and of what one entry is better by than another.

Another set of edits would have given other figures. Two entries are compared on the same draws of edits, so edits that
are hard for both do not hide a difference between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...decibels import LARGEST
from ...errors import KontextError
from ...installation import install_command
from ..intervals import Array, interval, mean_interval
from .picture_metrics import METRICS


def check_scipy() -> None:
    """Raises KontextError without scipy."""
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        raise KontextError(
            f"confidence intervals need scipy, which is not installed: {install_command('bench')}"
        ) from None


def signal_to_noise(signal: Array, noise: Array, axis: int = -1) -> Any:
    """Decibels of the ratio of both sums, at most 200."""
    whole = signal.sum(axis=axis)
    return 10 * np.log10(whole / np.maximum(noise.sum(axis=axis), whole * 10 ** (-LARGEST / 10)))


def noise_ratio(ours: Array, theirs: Array, axis: int = -1) -> Any:
    """By how many decibels our noise is less than theirs."""
    sums = [np.maximum(each.sum(axis=axis), np.finfo(np.float64).tiny) for each in (ours, theirs)]
    return 10 * np.log10(sums[1] / sums[0])


def intervals(
    entry: Mapping[str, Any], signal: Sequence[float], expected: Sequence[bool | None]
) -> dict[str, list[float]]:
    """Figure → its interval: of the velocity's ratio, every measure of pictures, and the lost edits. None of few edits.

    Args:
        signal: energy of the reference's velocities in each edit.
        expected: whether the reference's edit succeeds.
    """
    found = {"velocity_snr": interval([signal, entry["noise_each"]], signal_to_noise)}
    found |= {name: mean_interval(entry[f"{name}_each"]) for name in METRICS if name in entry}
    lost = [
        float(before) - float(after)
        for before, after in zip(expected, entry["success_each"], strict=True)
        if before is not None and after is not None
    ]
    if lost:
        found["lost_edits"] = mean_interval(lost)
    return {name: [float(f"{end:.5g}") for end in ends] for name, ends in found.items() if ends is not None}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], figure: str) -> tuple[float, float] | None:
    """The interval of what `ours` is better by, in `velocity_snr` or a measure of pictures that is best when large;
    None for few edits."""
    if figure == "velocity_snr":
        return interval([ours["noise_each"], theirs["noise_each"]], noise_ratio)
    pairs = zip(ours[f"{figure}_each"], theirs[f"{figure}_each"], strict=True)
    return mean_interval([one - other for one, other in pairs])
