"""From one weight to what a bundle stores of it: values, scales, a low-rank branch, the scale of its inputs.

Without statistics weights are rounded to the nearest; with them, errors are fed back (`gptq`) and a low-rank branch
corrects what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import fp8, int4, int8, low_rank
from .gptq import round_with_feedback
from .recipe import Layer
from .statistics import InputStatistics, bin_edge

E4M3_SMALLEST = 2.0**-9
"""Spacing of E4M3 below its smallest normal number, 2^-6."""


@dataclass(frozen=True)
class Format:
    """A quantized format as the methods see it.

    `quantize` rounds to the nearest: (weight [in, out], format of the scales) → stored values and scales. `pack` makes
    stored values of values in units of the scales, `scales` the scales [groups, out] alone, `nearest` rounds in their
    units, `dequantize` is what the graph computes.
    """

    quantize: Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]
    scales: Callable[[Tensor, torch.dtype], Tensor]
    nearest: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor], Tensor]
    dequantize: Callable[[Tensor, Tensor], Tensor]


FORMATS = {
    "fp8": Format(
        fp8.quantize,
        lambda weight, dtype: fp8.channel_scales(weight, dtype)[None],
        lambda units: units.clamp(-fp8.E4M3_MAX, fp8.E4M3_MAX).to(torch.float8_e4m3fn).float(),
        lambda units: units.to(torch.float8_e4m3fn),
        fp8.dequantize,
    ),
    "int8": Format(
        int8.quantize,
        lambda weight, dtype: int8.channel_scales(weight, dtype)[None],
        lambda units: units.round().clamp_(-int8.INT8_MAX, int8.INT8_MAX),
        lambda units: units.to(torch.int8),
        int8.dequantize,
    ),
    "int4": Format(
        int4.quantize,
        int4.search_scales,
        lambda units: units.round().clamp_(-8, 7),
        lambda units: int4.pack(units.to(torch.int8)),
        int4.dequantize,
    ),
}


def quantize(
    weight: Tensor, layer: Layer, dtype: torch.dtype, statistics: InputStatistics | None = None
) -> list[Tensor]:
    """The stored tensors of `weight` [in, out], in the order of `weights.stored_as`.

    Args:
        weight: any float format.
        layer: what it becomes; `rank` and `activations` decide which tensors there are beside values and scales.
        dtype: format of scales and branch.
        statistics: of the layer's inputs; needed for `activations`.

    Raises:
        KeyError: no such format.
    """
    kind = FORMATS[layer.format]
    moments = None if statistics is None else statistics.moments
    branch: tuple[Tensor, Tensor] | None = None
    if layer.rank and moments is None:
        branch = in_format(low_rank.leading(weight, layer.rank), dtype)
        weight = weight.float() - branch[0].float() @ branch[1].float()
    if moments is None:
        values, scales = kind.quantize(weight, dtype)
    else:
        scales = kind.scales(weight, dtype)
        units = round_with_feedback(weight, moments, scales.float(), kind.nearest)
        values, scales = (
            kind.pack(units),
            scales[0] if len(scales) == 1 and layer.format != "int4" else scales,
        )
        if layer.rank:
            error = weight.float() - kind.dequantize(values, scales.float())
            branch = in_format(low_rank.correction(error, moments, layer.rank), dtype)
    tensors = [values.contiguous(), scales.contiguous(), *(branch or ())]
    if layer.activations:
        if statistics is None:
            raise ValueError("static scales of activations need statistics")
        tensors.append(torch.tensor(static_scale(statistics), dtype=dtype))
    return tensors


def in_format(branch: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return branch[0].to(dtype).contiguous(), branch[1].to(dtype).contiguous()


def static_scale(statistics: InputStatistics) -> float:
    """The E4M3 scale of all of a layer's inputs with the least expected squared error: the largest value's, or less.

    Clipping rarely pays for a floating format: what it takes from the top it only gives to what is subnormal.
    """
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
