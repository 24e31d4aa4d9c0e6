"""Turns between batches, without a pipeline: who begins when, who takes the next step, and that none starves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kontext.runtime.server import turns
from kontext.runtime.server.turns import Turns

from ..conftest import until


@dataclass
class FakeJob:
    """A job of `steps` steps; jobs of one `kind` may share a batch."""

    kind: object
    steps: int = 3
    long: bool = False
    arrived: float = field(default_factory=time.monotonic)
    open: bool = True
    cancelled: bool = False
    width: int = 1
    left: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def work(self) -> float:
        return float(self.steps)

    def leave(self) -> None:
        assert not self.left.is_set()
        self.left.set()

    def close_if_cancelled(self) -> None:
        if self.cancelled:
            self.open = False
            self.ended.set()


class Sampler:
    """Writes down whose step came when; the first step waits for `begin`."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.steps: list[object] = []
        self.ended: list[object] = []
        self.begin = threading.Event()
        self.running = 0
        self.now = time.monotonic()

    def monotonic(self) -> float:
        """A clock by which each step takes a second."""
        return self.now

    def run(self, jobs: list[Any], after_step: Callable[[], None]) -> None:
        self.batches.append([job.kind for job in jobs])
        for _ in range(jobs[0].steps):
            self.running += 1
            assert self.running == 1  # one batch runs at a time
            assert self.begin.wait(30)
            self.steps.append(jobs[0].kind)
            self.now += 1
            self.running -= 1
            after_step()
        self.ended.append(jobs[0].kind)
        for job in jobs:
            job.ended.set()


@pytest.fixture
def sampler() -> Sampler:
    return Sampler()


@pytest.fixture
def by_steps(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes with steps only, so that the order of turns is always the same."""
    monkeypatch.setattr(turns, "time", sampler)


@pytest.fixture
def make(sampler: Sampler) -> Iterator[Callable[..., Turns]]:
    made: list[Turns] = []

    def turns_of(**settings: Any) -> Turns:
        chosen: dict[str, Any] = {"largest": 8, "places": 4, "default_work": 3.0, **settings}
        made.append(Turns(sampler.run, **chosen))
        return made[-1]

    yield turns_of
    sampler.begin.set()
    for each in made:
        each.close()


def add(to: Turns, *jobs: Any) -> None:
    """All at once: the first of them already finds the others."""
    for _ in jobs:
        to.expect()

    def together() -> None:
        for job in jobs:
            to.add(job)

    to.between_steps(together)
    for _ in jobs[1:]:
        to.between_steps(lambda: None)


def ended(*jobs: FakeJob) -> bool:
    return all(job.ended.wait(30) for job in jobs)


def test_jobs_of_a_kind_share_a_batch(sampler: Sampler, make: Callable[..., Turns]) -> None:
    jobs = [FakeJob(kind) for kind in "aabab"]
    sampler.begin.set()
    add(make(largest=2), *jobs)
    assert ended(*jobs)
    assert sorted(sampler.batches) == [["a"], ["a", "a"], ["b", "b"]]
    assert all(job.left.is_set() for job in jobs)


def test_jobs_of_two_rows_fill_a_batch_sooner(sampler: Sampler, make: Callable[..., Turns]) -> None:
    jobs = [FakeJob("a", width=2) for _ in range(5)]
    sampler.begin.set()
    add(make(largest=4), *jobs)
    assert ended(*jobs)
    assert [len(each) for each in sampler.batches] == [2, 2, 1]


@pytest.mark.usefixtures("by_steps")
def test_kinds_take_turns(sampler: Sampler, make: Callable[..., Turns]) -> None:
    jobs = [FakeJob("a", 50), FakeJob("b", 50)]
    sampler.begin.set()
    add(make(), *jobs)
    assert ended(*jobs)
    assert [sampler.steps[:40].count(kind) for kind in "ab"] == [20, 20]


@pytest.mark.usefixtures("by_steps")
def test_a_short_one_does_not_wait_for_long_ones(sampler: Sampler, make: Callable[..., Turns]) -> None:
    """However many long ones there are: half of the places are never theirs."""
    to = make()
    long = [FakeJob(f"long {number}", 200, long=True) for number in range(9)]
    add(to, *long)
    until(lambda: len(sampler.batches) > 0)
    short = [FakeJob(f"short {number}", 4) for number in range(5)]
    add(to, *short)
    sampler.begin.set()
    assert ended(*short, *long)  # those are not starved either
    assert sorted(sampler.ended[:5]) == [job.kind for job in short]


def test_a_long_one_gets_its_turn_among_many_short_ones(sampler: Sampler, make: Callable[..., Turns]) -> None:
    to = make(places=1)
    sampler.begin.set()
    long = FakeJob("long", 30, long=True, arrived=time.monotonic() - 10 * turns.SECONDS_PER_WORK)
    short = [FakeJob(f"short {number}", 3) for number in range(20)]
    add(to, *short[:10], long, *short[10:])
    assert ended(long, *short)
    assert sampler.batches.index(["long"]) < 10


def test_one_place_runs_one_after_the_other(sampler: Sampler, make: Callable[..., Turns]) -> None:
    jobs = [FakeJob("a", 9), FakeJob("b", 9)]
    sampler.begin.set()
    add(make(places=1), *jobs)
    assert ended(*jobs)
    assert sampler.steps == ["a"] * 9 + ["b"] * 9


def test_a_caller_who_leaves_the_queue(
    sampler: Sampler, make: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SWEEP_SECONDS", 0.0)
    to = make(places=1)
    first, gone = FakeJob("a"), FakeJob("b")
    add(to, first)
    until(lambda: sampler.batches == [["a"]])
    gone.cancelled = True
    add(to, gone)
    sampler.begin.set()
    assert ended(first, gone)
    assert gone.left.wait(30)
    to.close()
    assert sampler.batches == [["a"]]


def test_what_is_decoded_a_little_later_joins_the_batch(sampler: Sampler, make: Callable[..., Turns]) -> None:
    to = make()
    sampler.begin.set()
    early, late = FakeJob("a"), FakeJob("a")
    to.expect()
    to.expect()
    to.between_steps(lambda: to.add(early))  # type: ignore[arg-type]
    threading.Timer(0.05, lambda: to.between_steps(lambda: to.add(late))).start()  # type: ignore[arg-type]
    assert ended(early, late)
    assert sampler.batches == [["a", "a"]]


def test_a_fault_of_one_request_is_not_the_others(
    sampler: Sampler, make: Callable[..., Turns], capsys: pytest.CaptureFixture[str]
) -> None:
    to, good = make(), FakeJob("a")
    sampler.begin.set()
    to.expect()
    to.between_steps(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    add(to, good)
    assert ended(good)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_queue_is_counted_and_a_stuck_step_is_seen(sampler: Sampler, make: Callable[..., Turns]) -> None:
    to = make(places=1)
    assert to.stuck_seconds() == 0
    jobs = [FakeJob("a"), FakeJob("b")]
    add(to, *jobs)
    until(lambda: to.queue_length() == 1)
    until(lambda: to.stuck_seconds() > 0)
    sampler.begin.set()
    assert ended(*jobs)
    to.close()
    assert to.queue_length() == 0
