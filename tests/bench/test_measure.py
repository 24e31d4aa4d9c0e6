"""Clocks: what a process took, stages, medians, and the order in which peers take turns."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from kontext.bench.measure import Clock, Summary, interleave, run_process
from kontext.errors import KontextError


def test_peak_memory_is_the_childs_not_ours() -> None:
    ours = np.ones(200 * 2**20, np.uint8)  # what this process holds must not count as the child's
    small = run_process([sys.executable, "-S", "-c", "pass"])
    large = run_process([sys.executable, "-S", "-c", "x = bytearray(b'1') * (100 * 2**20)"])
    assert small.peak_bytes < 60 * 2**20 < 90 * 2**20 < large.peak_bytes < 180 * 2**20
    assert small.seconds > 0
    assert ours.all()


def test_a_process_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(KontextError, match="ended with code 3: no such bundle"):
        run_process([sys.executable, "-c", "print('no such bundle'); raise SystemExit(3)"])


def test_environment_reaches_the_process() -> None:
    code = "import os; raise SystemExit(os.environ['ASKED'] != 'yes')"
    run_process([sys.executable, "-c", code], environment={"ASKED": "yes"})


def test_clock_counts_each_run_of_a_stage() -> None:
    clock = Clock()
    square = clock.wrap("square", lambda value: value**2)
    assert [square(3), square(4)] == [9, 16]
    with clock.stage("sleep"):
        time.sleep(0.01)
    assert list(clock.stages) == ["square", "sleep"]
    assert len(clock.stages["square"]) == 2
    assert clock.stages["sleep"][0] >= 0.009


def test_clock_waits_for_the_device_before_each_reading() -> None:
    waits: list[int] = []
    clock = Clock(synchronize=lambda: waits.append(1))
    clock.wrap("step", lambda: None)()
    assert len(waits) == 2


def test_peers_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = interleave({"a": lambda: side("a"), "b": lambda: side("b")}, 2, warmup=1)
    assert calls == ["a", "b"] * 3
    assert results == {"a": [3, 5], "b": [4, 6]}


def test_summary() -> None:
    summary = Summary.of([3.0, 1.0, 2.0])
    assert (summary.median, summary.count) == (2.0, 3)
    assert summary.p95 == pytest.approx(2.9)
    with pytest.raises(ValueError, match="no values"):
        Summary.of([])
