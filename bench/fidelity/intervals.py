"""Confidence intervals of fidelity's figures, by the bootstrap over edits (scipy's, bias-corrected and accelerated).

Another set of edits would have given other figures: edits are drawn again, with replacement, thousands of times. Two
entries are compared on the same draws, so edits that are hard for both do not hide a difference between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...decibels import LARGEST
from ...errors import KontextError
from ...installation import install_command
from .picture_metrics import METRICS

CONFIDENCE = 0.95

RESAMPLES = 4999
"""Draws of all edits."""

SEED = 0

Array = NDArray[np.float64]
Statistic = Callable[..., Any]
Interval = list[float]


def check_scipy() -> None:
    """Raises KontextError without scipy."""
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        raise KontextError(
            f"confidence intervals need scipy, which is not installed: {install_command('bench')}"
        ) from None


def bootstrap(samples: Sequence[Sequence[float]], statistic: Statistic) -> Interval | None:
    """The interval of a statistic of paired samples, one number of each for every edit; None for a single edit.

    Args:
        samples: sequences of equal length.
        statistic: of as many arrays, reduced along its keyword `axis`.
    """
    from scipy import stats

    arrays = [np.asarray(sample, np.float64) for sample in samples]
    if len(arrays[0]) < 2:
        return None
    found = float(statistic(*arrays, axis=-1))
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")  # of distributions with a single value
        result = stats.bootstrap(
            arrays,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(SEED),
        ).confidence_interval
    # Where hardly an edit differs, the correction is undefined: then the figure is all there is.
    return [float(end) if np.isfinite(end) else found for end in (result.low, result.high)]


def mean(values: Array, axis: int = -1) -> Any:
    return values.mean(axis=axis)


def mean_difference(ours: Array, theirs: Array, axis: int = -1) -> Any:
    return (ours - theirs).mean(axis=axis)


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
) -> dict[str, Interval]:
    """Figure → its interval: of the velocity's ratio, every measure of pictures, and the lost edits.

    Args:
        signal: energy of the reference's velocities in each edit.
        expected: whether the reference's edit succeeds.
    """
    found = {"velocity_snr": bootstrap([signal, entry["noise_each"]], signal_to_noise)}
    for name in METRICS:
        if name in entry:
            found[name] = bootstrap([entry[f"{name}_each"]], mean)
    judged = [
        (before, after)
        for before, after in zip(expected, entry["success_each"], strict=True)
        if before is not None and after is not None
    ]
    if judged:
        found["lost_edits"] = bootstrap([*zip(*judged, strict=True)], mean_difference)
    return {
        name: [float(f"{end:.5g}") for end in interval]
        for name, interval in found.items()
        if interval is not None
    }


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], figure: str) -> Interval | None:
    """The interval of what `ours` is better by, in `velocity_snr` or a measure of pictures that is best when large."""
    if figure == "velocity_snr":
        return bootstrap([ours["noise_each"], theirs["noise_each"]], noise_ratio)
    return bootstrap([ours[f"{figure}_each"], theirs[f"{figure}_each"]], mean_difference)
