"""Smoothing: input channels that are much larger than the others are scaled down, and their rows of the weight up.

SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): x @ W = (x * f) @ (W / f). Where inputs are rounded with one scale for
all channels, the largest channel decides how coarse all are; f moves part of its size into the weight, whose scales are
by output channel. How much is chosen for each layer by the error that is to be expected of both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import InputStatistics

EXPONENTS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
"""Shares of the inputs' spread that the weight may take over (SmoothQuant's alpha)."""

INPUT_LEVELS = 255
"""Steps that inputs are rounded to: DynamicQuantizeLinear's eight bits from the smallest to the largest value."""

WEIGHT_LEVELS = 127


def smoothing_factors(weight: Tensor, statistics: InputStatistics) -> Tensor:
    """fp32 [in]: what each input channel is to be multiplied by; its row of `weight` [in, out] is to be divided by it.

    Powers of two, so that no format rounds them and products with them are exact.
    """
    weight = weight.float()
    inputs = statistics.largest.amax(0)
    rows = weight.abs().amax(1)
    usable = (inputs > 0) & (rows > 0)
    best = (float("inf"), torch.ones_like(inputs))
    for exponent in EXPONENTS:
        factors = torch.where(usable, rows ** (1 - exponent) / inputs**exponent, 1.0) if exponent else None
        if factors is None:
            factors = torch.ones_like(inputs)
        else:
            factors = (
                torch.exp2((factors / factors[usable].median()).log2().round()) if usable.any() else factors
            )
            factors = torch.where(usable, factors, 1.0)
        best = min(best, (expected_error(weight, statistics, factors), factors), key=lambda pair: pair[0])
    return best[1]


def expected_error(weight: Tensor, statistics: InputStatistics, factors: Tensor) -> float:
    """Mean squared error of an output, from inputs and weights both rounded, in units of the statistics' rows."""
    smoothed = weight / factors[:, None]
    # Largest values by range of steps: in each the inputs are rounded with their own scale.
    reach = 2 * (statistics.largest * factors).amax(1)
    input_noise = (reach / INPUT_LEVELS).square().mean() / 12
    weight_noise = (smoothed.abs().amax(0) / WEIGHT_LEVELS).square() / 12
    energy = mean_squares(statistics) * factors.square()
    return float(input_noise * smoothed.square().sum() + energy.sum() * weight_noise.sum())


def mean_squares(statistics: InputStatistics) -> Tensor:
    """fp32 [in]: of each channel; of the largest values where no moments were kept."""
    if statistics.moments is None or not statistics.rows:
        return statistics.largest.amax(0).square()
    return statistics.moments.diagonal(dim1=1, dim2=2).flatten() / statistics.rows
