"""How a schedule's evenly spaced times become sigmas, as in diffusers' FlowMatchEulerDiscreteScheduler. numpy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..errors import KontextError
from .sampler_entry import SigmasEntry

KARRAS_RHO = 7.0
"""Karras et al. 2022."""

LARGEST_MU = 80.0
"""FLUX's is 1.15 at its largest size. Above 88, e^mu is infinite in fp32."""

BETA_SHAPE = 0.6
"""Both parameters of the beta distribution, in "Beta Sampling is All You Need" (Lee et al. 2024)."""


def to_sigmas(times: NDArray[np.float32], mu: float, settings: SigmasEntry) -> NDArray[np.float32]:
    """Sigmas for evenly spaced `times` [steps], both falling from 1. Each number is rounded as diffusers rounds it.

    Raises:
        KontextError: mu, at this size of picture, is far from any model's, or not above 0 where the shift is linear in
            it.
    """
    one = np.float32(1)
    if settings.time_shift == "constant":
        sigmas = settings.shift * times / (1 + (settings.shift - 1) * times)
    else:
        if abs(mu) > LARGEST_MU:
            raise KontextError(
                f"the time shift for this size is {mu:g}: the bundle's sampler is not made for it"
            )
        shift = math.exp(mu) if settings.time_shift == "exponential" else mu
        if shift <= 0:
            raise KontextError(f"the time shift for this size is {shift:g}, which must be above 0")
        sigmas = shift / (shift + (1 / times - 1))
    if settings.terminal is not None and len(times) > 1:  # a single sigma is 1, and cannot be stretched
        scale = (one - sigmas[-1]) / np.float32(1 - settings.terminal)
        sigmas = one - (one - sigmas) / scale
    return spaced(sigmas, settings.spacing).astype(np.float32)


def spaced(sigmas: NDArray[np.float32], spacing: str) -> NDArray[np.floating]:
    """As many sigmas between the same ends, spaced by `spacing`; fp64 unless that is "uniform"."""
    first, last, count = float(sigmas[0]), float(sigmas[-1]), len(sigmas)
    if spacing == "karras":
        start, stop = first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO)
        return (start + np.linspace(0, 1, count) * (stop - start)) ** KARRAS_RHO
    if spacing == "exponential":
        return np.exp(np.linspace(math.log(first), math.log(last), count))
    if spacing == "beta":
        quantiles = np.array([beta_quantile(p) for p in 1 - np.linspace(0, 1, count)])
        return last + quantiles * (first - last)
    return sigmas


def beta_quantile(p: float) -> float:
    """The x with I_x(a, a) = p, the beta distribution's quantile, a = BETA_SHAPE.

    For x <= 1/2, I_x(a, b) = x^a / B(a, b) * sum over n of (1 - b)(2 - b)...(n - b) / n! * x^n / (a + n), and I is
    symmetric. In y = x^a it is almost straight, so a few of Newton's steps are exact.
    """
    if p > 0.5:
        return 1 - beta_quantile(1 - p)
    a = BETA_SHAPE
    whole = math.gamma(a) ** 2 / math.gamma(2 * a)
    y = p * a * whole
    for _ in range(8):
        x = y ** (1 / a)
        term, total = 1.0, 0.0
        for n in range(60):
            total += term / (a + n)
            term *= x * (n + 1 - a) / (n + 1)
        y -= (y * total - p * whole) * a / (1 - x) ** (a - 1)
    return float(y ** (1 / a))
