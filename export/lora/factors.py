"""A LoRA's changes as the factors of slots: exactly where they are low-rank, else the nearest of a given rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.lora.deltas import LowRank, read_finite
from ...model.lora.update import Addition, Update
from ...quant.low_rank import leading

CPU = torch.device("cpu")

ITERATIONS = 8
"""Of the decomposition: nothing else makes up for what these factors leave out."""


@dataclass(frozen=True)
class Factors:
    """Of one slot, in fp32: the change is up @ down^T.

    `error` is the share of the change's norm that is left out, 0 for exact factors.
    """

    down: Tensor
    """[in, rank]"""
    up: Tensor
    """[out, rank]"""
    error: float = 0.0


def exact_rank(updates: Sequence[Update], rows: slice) -> int | None:
    """The rank of exact factors for these rows of a weight; None if an update is not low-rank."""
    total = 0
    for update in updates:
        if any(True for _ in overlaps(update, rows)):
            if type(update) is not Addition or not isinstance(update.delta, LowRank):
                return None
            total += update.delta.rank
    return total


def exact_factors(updates: Sequence[Update], rows: slice, width: int) -> Factors:
    """The factors of low-rank updates side by side, for these rows of a weight [out, `width`].

    Raises:
        KontextError: a tensor cannot be read, or holds NaN or infinity.
    """
    downs, ups = [torch.zeros(width, 0)], [torch.zeros(rows.stop - rows.start, 0)]
    for update in updates:
        taken = list(overlaps(update, rows))
        if not taken:
            continue
        assert isinstance(update, Addition)
        assert isinstance(update.delta, LowRank)
        own = read_finite(update.delta.up, CPU)
        up = torch.zeros(rows.stop - rows.start, own.shape[1])
        for theirs, mine in taken:
            up[mine] = own[theirs] * update.scale
        ups.append(up)
        downs.append(read_finite(update.delta.down, CPU).t())
    return Factors(torch.cat(downs, 1), torch.cat(ups, 1))


def nearest_factors(change: Tensor, rank: int) -> Factors:
    """The nearest factors of a change [out, in] of at most this rank."""
    rank = min(rank, *change.shape)
    up, down = leading(change, rank, ITERATIONS)
    norm = change.norm()
    error = 0.0 if norm == 0 else float((change - up @ down).norm() / norm)
    return Factors(down.t().contiguous(), up, error)


def change_of(updates: Sequence[Update], shape: Sequence[int], read: Callable[[], Tensor]) -> Tensor:
    """What updates change in a weight, fp32 [out, in]; `read` gives the weight, which sums do not need.

    Raises:
        KontextError: a tensor cannot be read, holds NaN or infinity, or the result overflows.
    """
    if all(type(update) is Addition for update in updates):
        total = torch.zeros(tuple(shape))
        for update in updates:
            update.apply_to(total)
        return total
    before = read().float()
    after = before.clone()
    for update in updates:
        update.apply_to(after)
    return after - before


def overlaps(update: Update, rows: slice) -> Iterator[tuple[slice, slice]]:
    """Where an update touches these rows of its weight: which of the update's own rows, and which of `rows`."""
    start = 0
    for each in update.rows:
        first, last = max(each.start, rows.start), min(each.stop, rows.stop)
        if first < last:
            yield (
                slice(start + first - each.start, start + last - each.start),
                slice(first - rows.start, last - rows.start),
            )
        start += each.stop - each.start
