"""The knapsack against every allocation there is, its bound, and its corners."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext.quant.planner import Choice, Item, allocate, frontier, hull


def items_of(sizes: list[list[tuple[int, int]]]) -> list[Item]:
    return [
        Item(
            f"layer {number}",
            tuple(Choice(str(index), size, error) for index, (size, error) in enumerate(each)),
        )
        for number, each in enumerate(sizes)
    ]


def best(items: list[Item], budget: int) -> float | None:
    """The least error of all allocations that fit."""
    fitting = [
        sum(choice.error for choice in choices)
        for choices in itertools.product(*(item.choices for item in items))
        if sum(choice.bytes for choice in choices) <= budget
    ]
    return min(fitting, default=None)


def relaxed(items: list[Item], budget: int) -> float:
    """The least error where each layer may be stored in several ways, each in part: SciPy's linear programme."""
    choices = [(number, choice) for number, item in enumerate(items) for choice in item.choices]
    found = pytest.importorskip("scipy.optimize").linprog(
        [choice.error for _, choice in choices],
        A_ub=[[choice.bytes for _, choice in choices]],
        b_ub=[budget],
        A_eq=[[float(number == layer) for layer, _ in choices] for number in range(len(items))],
        b_eq=[1] * len(items),
    )
    return float(found.fun)


layers = st.lists(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 60)), min_size=1, max_size=4), max_size=5
)


@settings(max_examples=300, deadline=None)
@given(sizes=layers, budget=st.integers(0, 50))
def test_it_fits_and_is_within_its_bound(sizes: list[list[tuple[int, int]]], budget: int) -> None:
    items = items_of(sizes)
    optimum, found = best(items, budget), allocate(items, budget)
    if optimum is None:
        assert found is None
        return
    assert found is not None
    assert found.bytes <= budget
    assert len(found.choices) == len(items)
    assert found.bound <= optimum + 1e-9 <= found.error + 2e-9
    room = budget - found.bytes
    for choice, item in zip(found.choices, items, strict=True):
        assert choice in item.choices
        assert not any(
            other.error < choice.error and other.bytes - choice.bytes <= room for other in item.choices
        )


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.integers(0, 60)), min_size=2, max_size=4),
        min_size=1,
        max_size=4,
    ),
    room=st.integers(0, 30),
)
def test_the_bound_is_that_of_the_relaxed_problem(sizes: list[list[tuple[int, int]]], room: int) -> None:
    items = items_of(sizes)
    budget = sum(item.smallest() for item in items) + room
    found = allocate(items, budget)
    assert found is not None
    assert found.bound == pytest.approx(relaxed(items, budget), abs=1e-6)


def test_the_room_left_is_filled_with_what_saves_most() -> None:
    """5 bytes are too many for either; 3 lie above the line from 1 to 5, and are all that fit once."""
    items = items_of([[(1, 10), (3, 9), (5, 0)], [(1, 10), (3, 8), (5, 0)], [(1, 10), (3, 9), (5, 0)]])
    found = allocate(items, 5)
    assert found is not None
    assert [choice.bytes for choice in found.choices] == [1, 3, 1]
    assert (found.error, found.bound) == (28, 25)
    assert items[0].smallest() == 1


def test_many_layers_come_close_to_the_optimum() -> None:
    """With many layers the last step is a small part, so the greedy choice is all but the best."""
    import random

    rng = random.Random(0)
    items = items_of(
        [
            [(16 * size, 0), (8 * size, rng.randint(1, 40)), (4 * size, rng.randint(60, 4000))]
            for size in (rng.randint(100, 900) for _ in range(200))
        ]
    )
    smallest = sum(item.smallest() for item in items)
    for share in (1.1, 1.7, 2.5, 3.6):
        found = allocate(items, int(share * smallest))
        assert found is not None
        assert found.error <= 1.01 * found.bound


def test_with_room_for_all_nothing_is_lost() -> None:
    items = items_of([[(10, 0), (5, 3)], [(20, 0), (10, 9)]])
    found = allocate(items, 30)
    assert found is not None
    assert (found.error, found.bound, found.bytes) == (0, 0, 30)


def test_what_hurts_least_is_made_small_first() -> None:
    items = items_of([[(10, 0), (5, 3)], [(10, 0), (5, 9)]])
    found = allocate(items, 15)
    assert found is not None
    assert [choice.bytes for choice in found.choices] == [5, 10]


def test_nothing_to_choose() -> None:
    found = allocate([], 0)
    assert found is not None
    assert (found.bytes, found.error, found.bound) == (0, 0, 0)


def test_frontier_and_hull() -> None:
    sizes = {"a": (16, 0.0), "b": (8, 2.0), "c": (9, 3.0), "d": (4, 10.0), "e": (6, 9.0), "f": (4, 12.0)}
    choices = [Choice(name, size, error) for name, (size, error) in sizes.items()]
    kept = frontier(choices)
    assert [choice.name for choice in kept] == ["d", "e", "b", "a"]  # c and f are beaten
    assert [kept[index].name for index in hull(kept)] == ["d", "b", "a"]  # e lies above the line from d to b


@pytest.mark.parametrize("budget", [0, 8])
def test_too_small_a_budget(budget: int) -> None:
    assert allocate(items_of([[(9, 1), (10, 0)]]), budget) is None
