"""The planner: chooses each layer's number format so that every stage of an edit fits into a memory budget with the
least error.

Stages are loaded one at a time, so each is a separate knapsack problem: weights' bytes against the energy of the
velocity's error, which adds up over layers to first order. It is solved on the convex hull, with a bound on the
optimum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Choice:
    """One way to store a layer: bytes in memory, `error`, the relative energy that it adds to the velocity's error, and
    bytes on disk."""

    name: str
    bytes: int
    error: float
    stored: int = 0


@dataclass(frozen=True)
class Item:
    """A layer with every way to store it; the format that the network computes in has no error."""

    weight: str
    choices: tuple[Choice, ...]

    def smallest(self) -> int:
        return min(choice.bytes for choice in self.choices)


@dataclass(frozen=True)
class Allocation:
    """One choice for each item. No allocation of these bytes has less error than `bound`."""

    choices: tuple[Choice, ...]
    bound: float

    @property
    def bytes(self) -> int:
        return sum(choice.bytes for choice in self.choices)

    @property
    def error(self) -> float:
        return math.fsum(choice.error for choice in self.choices)


@dataclass
class State:
    """A partial allocation: the index of each item's choice on its frontier, and the bytes left."""

    frontiers: list[list[Choice]]
    chosen: list[int] = field(default_factory=list)
    room: int = 0

    def take(self, item: int, index: int) -> None:
        frontier = self.frontiers[item]
        self.room -= frontier[index].bytes - frontier[self.chosen[item]].bytes
        self.chosen[item] = index


def allocate(items: Sequence[Item], budget: int) -> Allocation | None:
    """Choices of at most `budget` bytes with nearly the least error; None if even the smallest do not fit.

    Starts from the smallest choices and takes steps along each item's convex hull, most error saved per byte first.
    Where the last step may be taken in part this is the optimum, which gives the bound. The room left is filled with
    the single changes that save most.
    """
    state = State([frontier(item.choices) for item in items])
    state.chosen = [0] * len(items)
    state.room = budget - sum(choices[0].bytes for choices in state.frontiers)
    if state.room < 0:
        return None
    steps: list[tuple[float, int, int, int, float, int]] = []
    for number, choices in enumerate(state.frontiers):
        for before, after in itertools.pairwise(hull(choices)):
            more = choices[after].bytes - choices[before].bytes
            saved = choices[before].error - choices[after].error
            steps.append((-saved / more, number, before, after, saved, more))
    bound: float | None = None
    for _, number, before, after, saved, more in sorted(steps):
        if bound is None and more > state.room:
            error = math.fsum(
                each[index].error for each, index in zip(state.frontiers, state.chosen, strict=True)
            )
            bound = error - saved * state.room / more
        if more <= state.room and state.chosen[number] == before:
            state.take(number, after)
    while improve(state):
        pass
    final = tuple(each[index] for each, index in zip(state.frontiers, state.chosen, strict=True))
    # Without a step too large to take, every layer is at its best.
    return Allocation(final, sum(choice.error for choice in final) if bound is None else max(bound, 0.0))


def improve(state: State) -> bool:
    """Takes the single change within the room left that saves most error; False if there is none."""
    best = (0.0, -1, -1)
    for number, choices in enumerate(state.frontiers):
        now = choices[state.chosen[number]]
        for index in range(state.chosen[number] + 1, len(choices)):
            if choices[index].bytes - now.bytes <= state.room:
                best = max(best, (now.error - choices[index].error, number, index))
    if best[1] < 0:
        return False
    state.take(best[1], best[2])
    return True


def frontier(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that no other beats in both bytes and error, smallest first."""
    result: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.bytes, each.error)):
        if not result or choice.error < result[-1].error:
            result.append(choice)
    return result


def hull(choices: Sequence[Choice]) -> list[int]:
    """Indices of a frontier's lower convex hull."""
    kept: list[int] = []
    for index, choice in enumerate(choices):
        while len(kept) > 1:
            first, middle = choices[kept[-2]], choices[kept[-1]]
            to_middle = (first.error - middle.error) / (middle.bytes - first.bytes)
            to_last = (first.error - choice.error) / (choice.bytes - first.bytes)
            if to_last < to_middle:
                break
            kept.pop()
        kept.append(index)
    return kept
