"""The scale with which a linear's inputs, or an attention's operands, are rounded to a format of 8 bits: one number,
from calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from .channel_scaling import HEADROOM
from .formats.base import NumberFormat
from .formats.per_channel import PerChannel
from .statistics import InputStatistics, bin_edge


def static_scale(
    statistics: InputStatistics,
    format: NumberFormat,
    centre: Tensor | None = None,
    factors: Tensor | None = None,
) -> float:
    """The scale of all inputs with the least expected squared error: the largest input over the format's largest value,
    or less.

    Clipping rarely pays for a floating-point format: what it takes from the top it only gives to what is subnormal.
    Inputs less their `centre` [in], or times `factors` [in], of which there is no histogram, are not clipped;
    with factors there is room for inputs beyond those of calibration.

    Raises:
        ValueError: the format has no such scale.
    """
    if not isinstance(format, PerChannel):
        raise ValueError(f"inputs are not rounded to {format.name}")
    if centre is not None or factors is not None:
        reach = statistics.reach(torch.zeros(statistics.width) if centre is None else centre)
        if factors is not None:
            reach = HEADROOM * reach * factors
        return float(reach.max()) / format.largest or 1.0
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
        scale = clip / format.largest
        spacing = format.spacing(middles / scale) * scale
        noise = torch.where(middles > clip, (middles - clip).square(), spacing.square() / 12)
        best = min(best, (float((noise * counts).sum()), clip))
    return best[1] / format.largest
