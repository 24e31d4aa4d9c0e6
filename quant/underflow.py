"""What E4M3 scales of blocks (NVFP4) are too coarse for: blocks of a weight, or of its inputs, that are far smaller
than the largest one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .block_input_scale import input_reach
from .formats import FORMATS
from .formats.base import InputRounding, OnnxForm
from .formats.fp8 import E4M3_SMALLEST
from .formats.nvfp4 import VALUES
from .recipe import Layer
from .statistics import InputStatistics
from .weight_layout import weight_layout


def underflow_notes(
    layer: Layer, weight: Tensor, stored: Sequence[Tensor], statistics: InputStatistics | None
) -> Iterator[str]:
    """A line for what of a linear is rounded to 0, or to the few values of the smallest scale.

    Args:
        layer: how the weight is stored.
        weight: [in, out].
        stored: what `quantize_weight` made of it.
        statistics: of its inputs.
    """
    format = FORMATS[layer.format]
    if format.onnx_form is not OnnxForm.TWO_LEVEL:
        return
    layout = weight_layout(layer, (weight.shape[0], weight.shape[1]))
    found = {each.suffix: tensor for each, tensor in zip(layout, stored, strict=True)}
    scales = found["_scale"].float()
    zeros = weight.unflatten(0, (-1, format.group)).abs().amax(1) == 0
    if count := int(((scales == E4M3_SMALLEST) & ~zeros).sum()):
        yield (
            f"{count} of {scales.numel()} blocks of weights are too small beside the largest for scales in E4M3, and "
            "have its smallest"
        )
    if layer.input_rounding is InputRounding.BLOCKS and statistics is not None:
        centre, factors = (found.get(name) for name in ("_input_mean", "_input_factor"))
        centre, factors = (None if each is None else each.float() for each in (centre, factors))
        blocks = input_reach(statistics, centre, factors).unflatten(0, (-1, format.group)).amax(1)
        # Half the smallest E4M3 number rounds to 0.
        lost = (blocks > 0) & (blocks <= float(found["_input_scale"]) * VALUES[-1] * E4M3_SMALLEST / 2)
        if count := int(torch.count_nonzero(lost)):
            yield (
                f"{count} of {len(blocks)} blocks of its inputs are too small beside the largest for scales in E4M3, "
                "and become 0"
            )
