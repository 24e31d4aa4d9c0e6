"""GPTQ: rounding with error feedback, so that a layer's output and not its weights stays close.

Input rows are rounded one by one, those with the largest inputs first, and the error that each leaves in the layer's
output is compensated by the rows not yet rounded (Frantar et al. 2022, arXiv:2210.17323, with scales fixed beforehand).
Only the inputs' second moments X^T X are needed; calibration collects them in diagonal blocks, and errors stay within a
block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .parallel import on_all_cores

DAMPING = 0.01
"""Share of the mean of the moments' diagonal that is added to it, for directions that calibration has hardly seen."""

BLOCK = 64
"""Rows whose errors are passed to the later rows in one product."""

COLUMNS = 2048
"""Output channels rounded at once; they are independent, so this only bounds the memory."""


def round_with_feedback(
    weight: Tensor,
    moments: Tensor,
    steps: Tensor,
    nearest: Callable[[Tensor, Tensor | None], Tensor],
    offsets: Tensor | None = None,
) -> Tensor:
    """`weight` in units of its steps, every value one that `nearest` gives.

    Args:
        weight: [in, out].
        moments: fp32 [blocks, size, size] with blocks * size = in, sums of x^T x over the layer's inputs.
        steps: fp32 [groups, out], each of in / groups rows.
        nearest: `NumberFormat.nearest`, of values [out] in units of the step and their offsets.
        offsets: fp32 [groups, out], the zero points of formats that have them.

    Returns:
        fp32 [in, out].

    Raises:
        ValueError: the moments do not fit the weight.
    """
    rows, columns = weight.shape
    blocks, size, _ = moments.shape
    if blocks * size != rows:
        raise ValueError(f"moments of {blocks} x {size} inputs do not fit a weight of {rows}")
    units = torch.empty(rows, columns)
    group = rows // steps.shape[0]
    for block in range(blocks):
        start = block * size
        order, factor = inverse_factor(moments[block])
        groups = (torch.arange(start, start + size) // group)[order]

        def round_columns(
            part: slice,
            start: int = start,
            order: Tensor = order,
            factor: Tensor = factor,
            groups: Tensor = groups,
        ) -> None:
            values = weight[start : start + size, part].float()[order]
            shifts = None if offsets is None else offsets[:, part][groups]
            units[start + order, part] = round_block(values, factor, steps[:, part][groups], nearest, shifts)

        on_all_cores(round_columns, [slice(at, at + COLUMNS) for at in range(0, columns, COLUMNS)])
    return units


def inverse_factor(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which rows are rounded, and the upper Cholesky factor of the damped moments' inverse in it."""
    dampened = moments.double()
    diagonal = dampened.diagonal()
    order = diagonal.argsort(descending=True, stable=True)
    mean = diagonal.mean()
    # Without any input every rounding is equally good.
    dampened = dampened + torch.eye(len(moments)) * (DAMPING * mean if mean > 0 else 1.0)
    lower = torch.linalg.cholesky(dampened[order][:, order])
    factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return order, factor.float()


def round_block(
    values: Tensor,
    factor: Tensor,
    steps: Tensor,
    nearest: Callable[[Tensor, Tensor | None], Tensor],
    offsets: Tensor | None,
) -> Tensor:
    """Rounds `values` [size, columns], which it overwrites, row by row; the result is in units of `steps`."""
    size = len(values)
    units = torch.empty_like(values)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = torch.empty(stop - start, values.shape[1])
        for row in range(start, stop):
            units[row] = nearest(values[row] / steps[row], None if offsets is None else offsets[row])
            error = (values[row] - units[row] * steps[row]) / factor[row, row]
            errors[row - start] = error
            values[row + 1 : stop].addr_(factor[row, row + 1 : stop], error, alpha=-1)
        values[stop:] -= factor[start:stop, stop:].t() @ errors
    return units
