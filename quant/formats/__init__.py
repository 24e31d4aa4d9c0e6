"""Number formats: one record each, in a file of its own.

To add one: its file here, its line in `FORMATS`, its test, and a kernel if none of the existing ones computes with it.
Everything else (recipes, planner, graphs, engines, the torch backend, command lines, benchmarks) reads the record.
Importing this package does not import PyTorch: only the methods that compute do, so that `--help` is quick and engines
build without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import COMPUTE, NumberFormat
from .fp8 import FP8
from .int4 import INT4
from .int8 import INT8
from .nf4 import NF4
from .nvfp4 import NVFP4
from .uint4 import UINT4

FORMATS: dict[str, NumberFormat] = {
    each.name: each
    for each in (
        FP8,
        INT8,
        INT4,
        UINT4,
        NF4,
        NVFP4,
    )
}
"""By name, in the order in which they are listed."""


def find_format(stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> NumberFormat | None:
    """The format that a weight is stored in.

    Args:
        stored: suffix → safetensors' dtype and shape of every tensor stored for the weight; "" is the values' suffix.

    Returns:
        The format with the most of these tensors, in these dtypes; among several the one whose shapes these are. None
        for a weight that is not quantized, or in no known format.
    """
    found = [each for each in FORMATS.values() if has_tensors(each, stored)]
    most = max((len(each.tensors) for each in found), default=0)
    found = [each for each in found if len(each.tensors) == most]
    return next((each for each in found if has_shapes(each, stored)), found[0] if found else None)


def has_tensors(format: NumberFormat, stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> bool:
    from ...model.stored_dtypes import STORED_DTYPES

    compute = tuple(STORED_DTYPES.values())
    return all(
        each.suffix in stored
        and stored[each.suffix][0] in (compute if each.dtype == COMPUTE else (each.dtype,))
        for each in format.tensors
    )


def has_shapes(format: NumberFormat, stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> bool:
    shape = format.weight_shape(stored[""][1])
    return (
        shape is not None
        and format.fits(shape)
        and all(each.shape == stored[each.suffix][1] for each in format.layout(shape))
    )
