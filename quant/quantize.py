"""From one weight to what a bundle stores of it: values, scales, a low-rank branch, what its inputs are scaled by.

Without statistics weights are rounded to the nearest. With them, errors are fed back (`gptq`), a low-rank branch
corrects what is left, and inputs that will be rounded too are centred: each channel's mean over all steps is
subtracted, and the linear's output for that mean is added back in full precision (the shifting of Outlier Suppression+:
Wei et al. 2023, arXiv:2304.09145). E4M3 rounds in proportion to a value, and a third of it is that mean. Where channels
are scaled too (`channel_scaling`), the middle of a channel's range is subtracted, what is quantized is the weight with
its rows divided by the factors, and the added output makes up for the weight's error at the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import low_rank
from .block_input_scale import block_input_scale, input_reach
from .channel_scaling import channel_factors
from .formats import FORMATS
from .gptq import round_with_feedback
from .recipe import Layer
from .static_scale import static_scale
from .statistics import InputStatistics


def quantize_weight(
    weight: Tensor, layer: Layer, dtype: torch.dtype, statistics: InputStatistics | None = None
) -> list[Tensor]:
    """The stored tensors of `weight` [in, out], in the order of `weight_layout`.

    Args:
        weight: any floating-point dtype.
        layer: how it is stored.
        dtype: of scales and branch where the format does not say otherwise.
        statistics: of the layer's inputs; needed for centring and for static scales of inputs.

    Raises:
        KeyError: no such format.
        ValueError: the weight does not fit the format, or statistics are missing.
    """
    format = FORMATS[layer.format]
    moments = None if statistics is None else statistics.moments
    extra: list[Tensor] = []
    centre: Tensor | None = None
    factors: Tensor | None = None
    if layer.centred:
        if statistics is None:
            raise ValueError("centring needs statistics")
        stored = (statistics.middle() if layer.scaled else statistics.mean()).to(dtype)
        centre = stored.float()
        extra += [stored, (centre @ weight.float()).to(dtype)]
        if moments is not None:
            moments = statistics.moments_about(statistics.mean() if layer.scaled else centre)
    whole = weight
    if layer.scaled:
        if statistics is None:
            raise ValueError("scaled channels need statistics")
        stored = channel_factors(statistics, centre).to(dtype)
        extra.append(stored)
        factors = stored.float()
        weight = weight.float() / factors[:, None]
        if moments is not None:
            parts = factors.view(*moments.shape[:2], 1)
            moments = moments * parts * parts.mT
    if layer.has_input_scale:
        if statistics is None:
            raise ValueError("static scales of inputs need statistics")
        if layer.has_static_inputs:
            scale = static_scale(statistics, FORMATS[layer.activations], centre, factors)
            extra.append(torch.tensor(scale, dtype=dtype))
        else:
            scale = block_input_scale(input_reach(statistics, centre, factors))
            extra.append(torch.tensor(scale))
    branch: tuple[Tensor, Tensor] | None = None
    if layer.rank and moments is None:
        weight = weight.float()
        branch = cast_branch(low_rank.leading(weight, layer.rank), dtype)
        # The transpose of the transposes' difference: checkpoints store weights as [out, in].
        weight = torch.addmm(weight.t(), branch[1].float().t(), branch[0].float().t(), alpha=-1).t()
    if moments is None:
        values, *scales = format.quantize(weight, dtype)
    else:
        format.check(tuple(weight.shape))
        found = format.scales(weight, dtype)
        units = round_with_feedback(
            weight, moments, format.step(*found), format.nearest, format.offset(*found)
        )
        values, *scales = format.pack(units, *found), *found
        if layer.rank:
            error = weight.float() - format.dequantize(values, *map(in_fp32, scales)).float()
            branch = cast_branch(low_rank.correction(error, moments, layer.rank), dtype)
    made = [values, *scales, *(branch or ())]
    if layer.is_unpacked_to_inputs:
        unpacked = format.dequantize(values, *map(in_fp32, scales)).float()
        made += FORMATS[layer.activations].scales(unpacked, dtype)
    if statistics is not None and centre is not None and factors is not None:
        mean = (statistics.mean() - centre) * factors
        error = weight - dequantize_weight(made, layer)
        extra[1] = (centre @ whole.float() + mean @ error).to(dtype)
    return [tensor.contiguous() for tensor in (*made, *extra)]


def dequantize_weight(tensors: Sequence[Tensor], layer: Layer) -> Tensor:
    """The weight, fp32 [in, out], that the stored tensors of `quantize_weight` stand for, the branch included: where
    the inputs' channels are scaled, the one for scaled inputs."""
    format = FORMATS[layer.format]
    count = len(format.tensors)
    values, *scales = tensors[:count]
    weight = format.dequantize(values, *map(in_fp32, scales)).float()
    if layer.is_unpacked_to_inputs:
        by_column = tensors[count + (2 if layer.rank else 0)].float()
        weight = FORMATS[layer.activations].nearest(weight / by_column) * by_column
    if layer.rank:
        down, up = tensors[count : count + 2]
        weight = weight + down.float() @ up.float()
    return weight


def in_fp32(scale: Tensor) -> Tensor:
    """Scales in 16 bits as fp32; E4M3 and packed ones unchanged."""
    return scale.float() if scale.dtype in (torch.float16, torch.bfloat16) else scale


def cast_branch(branch: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return branch[0].to(dtype), branch[1].to(dtype)
