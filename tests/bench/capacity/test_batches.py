"""Batches from a load's answers: of a simulated server whose speed changes, which the simulation knows exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("simpy")

from kontext.bench.capacity.arrivals import Poisson
from kontext.bench.capacity.batches import as_fast_as
from kontext.bench.capacity.service import Service
from kontext.bench.capacity.simulation import Fleet, simulate
from kontext.errors import KontextError

CLOSED_LOOPS = Service("server", (0.05, 0.08, 0.11, 0.14), overhead=0.004, spread=(0.9, 1.1))
MEAN = 10 / 9
"""Factor of the load below, on average over its time."""
TIMES = Poisson(20.0).times(60.0, np.random.default_rng(0))


def slow_in_the_middle() -> Service:
    """The server during the load: a third slower from 20 to 40 s."""
    at = np.arange(0.0, 60.0, 0.05)
    speed = np.where((at > 20) & (at < 40), 4 / 3, 1.0)
    return replace(CLOSED_LOOPS, spread=tuple(speed), spread_at=tuple(at))


def test_the_speed_at_each_time_is_found() -> None:
    answers = TIMES + simulate(TIMES, slow_in_the_middle(), Fleet(1)).latencies
    found = as_fast_as(CLOSED_LOOPS, TIMES, answers)
    assert found.overhead == CLOSED_LOOPS.overhead
    assert list(found.spread_at) == sorted(found.spread_at)
    at, factors = np.asarray(found.spread_at), np.asarray(found.spread)
    for first, last, factor in ((0, 19, 1.0), (21, 39, 4 / 3), (41, 60, 1.0)):
        inside = factors[(at > first) & (at < last)]
        assert len(inside) > 30
        np.testing.assert_allclose(inside.mean() / factors.mean(), factor / MEAN, rtol=0.1)


def test_the_simulation_at_that_speed_is_beside_the_server() -> None:
    measured = simulate(TIMES, slow_in_the_middle(), Fleet(1))
    now = as_fast_as(CLOSED_LOOPS, TIMES, TIMES + measured.latencies)
    predicted = simulate(TIMES, now, Fleet(1), seed=1)
    alone = simulate(TIMES, CLOSED_LOOPS, Fleet(1), seed=1)
    for percent in (50, 95):
        assert predicted.percentile(percent) == pytest.approx(measured.percentile(percent), rel=0.05)
    assert alone.percentile(95) < 0.8 * measured.percentile(95)  # what closed loops alone would say


def test_batches_that_nothing_waited_for_say_nothing() -> None:
    """Their time is the callers', not the server's."""
    times = np.arange(20) * 1.0
    with pytest.raises(KontextError, match="only 0 batches of a load followed another"):
        as_fast_as(CLOSED_LOOPS, times, times + 0.054)


def test_each_size_has_its_own_time() -> None:
    """Closed loops that are wrong about one size do not make batches of the others slower."""
    server = Service("server", (0.05, 0.08, 0.11, 0.14), overhead=0.004)
    wrong = replace(server, seconds=(0.05, 0.055, 0.06, 0.14))
    answers = TIMES + simulate(TIMES, server, Fleet(1)).latencies
    np.testing.assert_allclose(as_fast_as(wrong, TIMES, answers).seconds, server.seconds, rtol=1e-6)
