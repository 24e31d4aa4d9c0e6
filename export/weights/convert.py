"""Reads a planned weight, and converts or quantizes it."""

from __future__ import annotations

import warnings

from torch import Tensor

from ...errors import KontextError
from ...model.checkpoint import NetworkWeights
from ...model.dtypes import COMPUTE_DTYPES
from ...model.finite import is_finite
from ...quant.formats import FORMATS
from ...quant.quantize import quantize_weight
from ...quant.underflow import underflow_notes
from .plan import PlannedWeight, WeightPlan

TRANSPOSED_ROWS = 128
"""Rows that are transposed at once, few enough for both copies to stay in the CPU's cache."""


def convert(plan: WeightPlan, item: PlannedWeight, network: NetworkWeights) -> list[Tensor]:
    """Reads one weight and returns its stored tensors, in the order of `item.tensors`.

    Raises:
        KontextError: the weight is damaged, or does not fit into fp16.
    """
    if item.layer is None:
        return [plan.constants[item.weight]]
    weight = network.read(item.weight)
    if item.layer.format in FORMATS:
        dtype = COMPUTE_DTYPES[plan.compute]
        weight = weight.t() if item.transpose else weight
        statistics = plan.statistics.get(item.weight)
        stored = quantize_weight(weight, item.layer, dtype, statistics)
        for note in underflow_notes(item.layer, weight, stored, statistics):
            warnings.warn(f"{plan.network}: {item.weight}: {note}", stacklevel=2)
        return stored
    return [cast(weight, item.layer.format, plan.network, item.weight, item.transpose)]


def cast(weight: Tensor, compute: str, network: str, name: str, transpose: bool = False) -> Tensor:
    """`weight`, or with `transpose` its transpose, contiguous in the format `compute`; `network` and `name` are for the
    message.

    Raises:
        KontextError: it does not fit into fp16.
    """
    stored = weight.to(COMPUTE_DTYPES[compute])
    stored = transposed(stored) if transpose else stored.contiguous()
    if compute == "fp16" and not is_finite(stored):
        raise KontextError(f"{network}: weight {name} does not fit into fp16: export with --bf16 or --fp32")
    return stored


def transposed(matrix: Tensor) -> Tensor:
    """`matrix` [rows, columns] as a contiguous [columns, rows]; a third faster than PyTorch's own transposed copy."""
    result = matrix.new_empty(matrix.shape[::-1])
    for start in range(0, len(matrix), TRANSPOSED_ROWS):
        result[:, start : start + TRANSPOSED_ROWS] = matrix[start : start + TRANSPOSED_ROWS].t()
    return result
