"""The scale with which a linear's inputs, or an attention's operands, are rounded to E4M3: one number, from
calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats.fp8 import E4M3_MAX
from .statistics import InputStatistics, bin_edge

E4M3_SMALLEST = 2.0**-9
"""Spacing of E4M3 below its smallest normal number, 2^-6."""


def static_scale(statistics: InputStatistics, centre: Tensor | None = None) -> float:
    """The E4M3 scale of all inputs with the least expected squared error: the largest value over 448, or less.

    Clipping rarely pays for a floating-point format: what it takes from the top it only gives to what is subnormal.
    Inputs less their `centre` [in], of which there is no histogram, are not clipped.
    """
    if centre is not None:
        return float(statistics.reach(centre).max()) / E4M3_MAX or 1.0
    largest = statistics.amax()
    if largest == 0:
        return 1.0
    counts = statistics.histogram
    middles = torch.tensor(
        [(bin_edge(i) + bin_edge(i + 1)) / 2 for i in range(len(counts))], dtype=torch.float64
    )
    best = (float("inf"), largest)
    for eighth in range(25):
        clip = largest * 2 ** (-eighth / 8)
        scale = clip / E4M3_MAX
        spacing = torch.exp2((middles / scale).log2().floor() - 3).clamp(min=E4M3_SMALLEST) * scale
        noise = torch.where(middles > clip, (middles - clip).square(), spacing.square() / 12)
        best = min(best, (float((noise * counts).sum()), clip))
    return best[1] / E4M3_MAX
