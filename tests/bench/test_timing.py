"""Times of stages, medians and percentiles, and the order in which sides take turns."""

from __future__ import annotations

import time

import pytest

from kontext.bench.timing import Percentiles, StageTimer, interleave


def test_a_timer_counts_each_run_of_a_stage() -> None:
    timer = StageTimer()
    square = timer.wrap("square", lambda value: value**2)
    assert [square(3), square(4)] == [9, 16]
    with timer.stage("sleep"):
        time.sleep(0.01)
    assert list(timer.stages) == ["square", "sleep"]
    assert len(timer.stages["square"]) == 2
    assert timer.stages["sleep"][0] >= 0.009


def test_a_timer_waits_for_the_device_before_each_reading() -> None:
    waits: list[int] = []
    timer = StageTimer(synchronize=lambda: waits.append(1))
    timer.wrap("step", lambda: None)()
    assert len(waits) == 2


def test_sides_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = interleave({"a": lambda: side("a"), "b": lambda: side("b")}, 2, warmup=1)
    assert calls == ["a", "b"] * 3
    assert results == {"a": [3, 5], "b": [4, 6]}


def test_percentiles() -> None:
    percentiles = Percentiles.of([3.0, 1.0, 2.0])
    assert (percentiles.median, percentiles.count) == (2.0, 3)
    assert percentiles.p95 == pytest.approx(2.9)
    assert percentiles.to_json() == {"median": 2.0, "p95": 2.9, "count": 3, "samples": [3.0, 1.0, 2.0]}
    assert Percentiles.of([3.0, 1.0, 2.0], [2.0]).to_json()["samples"] == [2.0]
    with pytest.raises(ValueError, match="no values"):
        Percentiles.of([])
