"""A graph's outputs, checked: a bundle's graphs may be another model's, and its weights damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import ComputationError

if TYPE_CHECKING:
    from types import EllipsisType

Array = NDArray[np.float32]


def take(
    outputs: Mapping[str, Array], graph: str, name: str, shape: Sequence[int | EllipsisType | None]
) -> Array:
    """A graph's output.

    Args:
        outputs: of a run.
        graph, name: which one.
        shape: what it must have; None is any size, and `...` at the end any further dimensions.

    Raises:
        ComputationError: it is missing, or no float32 array of this shape: what ran is another model's graph.
    """
    found = outputs.get(name)
    if found is not None and found.dtype == np.float32:
        actual = found.shape
        if shape[-1] is ...:
            actual, shape = actual[: len(shape) - 1], shape[:-1]
        if len(actual) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, actual, strict=True)
        ):
            return found
    what = "is missing" if found is None else f"has the shape {list(found.shape)} and the type {found.dtype}"
    raise ComputationError(f"{graph} is not a graph of this format: its output {name} {what}")


def check_finite(graph: str, values: Array) -> None:
    """Raises ComputationError if a graph's output holds NaN or infinity, which later graphs and `to_pictures` hide."""
    if not np.isfinite(values).all():
        raise ComputationError(
            f"the output of {graph} is not finite: its weights are damaged, or its number format is too narrow"
        )
