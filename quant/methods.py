"""From one weight to what a bundle stores of it: values, scales, a low-rank branch, what its inputs are scaled by.

Without statistics weights are rounded to the nearest; with them, errors are fed back (`gptq`), a low-rank branch
corrects what is left, and inputs that will be rounded too are centred: a channel's mean over all steps is subtracted,
and what the linear makes of it is added to its output in full precision (the shifting of Outlier Suppression+: Wei et
al. 2023, arXiv:2304.09145). E4M3 rounds in proportion to what it is given, and a third of it is that mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import fp8, low_rank
from .formats import FORMATS, WIDE, Part
from .gptq import round_with_feedback
from .recipe import Layer
from .statistics import InputStatistics, bin_edge

E4M3_SMALLEST = 2.0**-9
"""Spacing of E4M3 below its smallest normal number, 2^-6."""


def layout(layer: Layer, shape: tuple[int, int]) -> list[Part]:
    """Every tensor that `quantize` makes of a weight [in, out], in its order."""
    rows, columns = shape
    parts = list(FORMATS[layer.format].layout(shape))
    if layer.rank:
        parts += [("_down", WIDE, (rows, layer.rank)), ("_up", WIDE, (layer.rank, columns))]
    if layer.centred:
        parts += [("_input_mean", WIDE, (rows,)), ("_mean_output", WIDE, (columns,))]
    if layer.activations == "fp8":
        parts.append(("_input_scale", WIDE, ()))
    return parts


def quantize(
    weight: Tensor, layer: Layer, dtype: torch.dtype, statistics: InputStatistics | None = None
) -> list[Tensor]:
    """The stored tensors of `weight` [in, out], in the order of `layout`.

    Args:
        weight: any float format.
        layer: what it becomes.
        dtype: of scales and branch where the format does not say otherwise.
        statistics: of the layer's inputs; needed for centring and for static scales of activations.

    Raises:
        KeyError: no such format.
        ValueError: the weight does not fit the format, or statistics are missing.
    """
    kind = FORMATS[layer.format]
    moments = None if statistics is None else statistics.moments
    extra: list[Tensor] = []
    centre: Tensor | None = None
    if layer.centred:
        if statistics is None:
            raise ValueError("centring needs statistics")
        stored = statistics.mean().to(dtype)
        centre = stored.float()
        extra += [stored, (centre @ weight.float()).to(dtype)]
        moments = None if moments is None else statistics.moments_about(centre)
    if layer.activations == "fp8":
        if statistics is None:
            raise ValueError("static scales of activations need statistics")
        extra.append(torch.tensor(static_scale(statistics, centre), dtype=dtype))
    branch: tuple[Tensor, Tensor] | None = None
    if layer.rank and moments is None:
        branch = in_format(low_rank.leading(weight, layer.rank), dtype)
        weight = weight.float() - branch[0].float() @ branch[1].float()
    if moments is None:
        values, *scales = kind.quantize(weight, dtype)
    else:
        found = kind.scales(weight, dtype)
        units = round_with_feedback(weight, moments, kind.step(*found), kind.nearest, kind.offset(*found))
        values, *scales = kind.pack(units, *found), *found
        if layer.rank:
            error = weight.float() - kind.dequantize(values, *(as_wide(each) for each in scales)).float()
            branch = in_format(low_rank.correction(error, moments, layer.rank), dtype)
    return [tensor.contiguous() for tensor in (values, *scales, *(branch or ()), *extra)]


def dequantize(tensors: Sequence[Tensor], layer: Layer) -> Tensor:
    """The weight, fp32 [in, out], that the stored tensors of `quantize` stand for, the branch included."""
    kind, shape = FORMATS[layer.format], (1 << 10, 2)
    count = len(kind.layout(shape))
    found = dict(zip((ending for ending, *_ in layout(layer, shape)), tensors, strict=True))
    values, *scales = tensors[:count]
    weight = kind.dequantize(values, *(as_wide(each) for each in scales)).float()
    if layer.rank:
        weight = weight + found["_down"].float() @ found["_up"].float()
    return weight


def as_wide(scale: Tensor) -> Tensor:
    """Scales in 16 bits as fp32; E4M3 and packed ones as they are."""
    return scale.float() if scale.dtype in (torch.float16, torch.bfloat16) else scale


def in_format(branch: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return branch[0].to(dtype), branch[1].to(dtype)


def static_scale(statistics: InputStatistics, centre: Tensor | None = None) -> float:
    """The E4M3 scale of all of a layer's inputs with the least expected squared error: the largest value's, or less.

    Clipping rarely pays for a floating format: what it takes from the top it only gives to what is subnormal. Inputs
    less their `centre` [in], of which there is no histogram, are not clipped.
    """
    if centre is not None:
        return float(statistics.reach(centre).max()) / fp8.E4M3_MAX or 1.0
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
        scale = clip / fp8.E4M3_MAX
        spacing = torch.exp2((middles / scale).log2().floor() - 3).clamp(min=E4M3_SMALLEST) * scale
        noise = torch.where(middles > clip, (middles - clip).square(), spacing.square() / 12)
        best = min(best, (float((noise * counts).sum()), clip))
    return best[1] / fp8.E4M3_MAX
