"""The tensors that a quantized weight is stored as, from its shape alone; `quantize` makes them."""

from __future__ import annotations

from .formats import COMPUTE, FORMATS
from .formats.base import TensorLayout
from .recipe import Layer


def weight_layout(layer: Layer, shape: tuple[int, int]) -> list[TensorLayout]:
    """Every tensor that `quantize_weight` makes of a weight [in, out], in its order."""
    rows, columns = shape
    tensors = FORMATS[layer.format].layout(shape)
    if layer.rank:
        tensors.append(TensorLayout("_down", COMPUTE, (rows, layer.rank)))
        tensors.append(TensorLayout("_up", COMPUTE, (layer.rank, columns)))
    if layer.is_unpacked_to_inputs:
        tensors.append(TensorLayout("_column_scale", COMPUTE, (columns,)))
    if layer.centred:
        tensors.append(TensorLayout("_input_mean", COMPUTE, (rows,)))
        tensors.append(TensorLayout("_mean_output", COMPUTE, (columns,)))
    if layer.scaled:
        tensors.append(TensorLayout("_input_factor", COMPUTE, (rows,)))
    if layer.has_input_scale:
        # That of blocks is too small for fp16.
        dtype = COMPUTE if layer.has_static_inputs else "F32"
        tensors.append(TensorLayout("_input_scale", dtype, ()))
    return tensors
