"""The simulation against queueing theory (M/M/1, Erlang C and B, M/D/1, Little's law) and small cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("simpy")

from kontext.bench.capacity.arrivals import Bursty, Poisson, Times
from kontext.bench.capacity.service import Service
from kontext.bench.capacity.simulation import Fleet, simulate

EXPONENTIAL = Service("exponential", (1.0,), spread=tuple(np.random.default_rng(7).exponential(1, 50_000)))
FIXED = Service("fixed", (1.0,))


def poisson(rate: float, edits: int, seed: int = 0) -> Times:
    return Poisson(rate).times(edits / rate, np.random.default_rng(seed))


def erlang_c(servers: int, load: float) -> float:
    """The share of arrivals that wait, in M/M/c (Erlang 1917)."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


def test_one_server() -> None:
    """M/M/1: an edit takes 1 / (mu - lambda) on average, and its 95th percentile is ln 20 times that."""
    outcome = simulate(poisson(0.6, 60_000), EXPONENTIAL, Fleet(1, queue=None))
    assert outcome.latencies.mean() == pytest.approx(1 / 0.4, rel=0.06)
    assert outcome.percentile(95) == pytest.approx(math.log(20) / 0.4, rel=0.08)
    assert outcome.busy / outcome.seconds == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize(("servers", "load"), [(3, 2.1), (10, 8.5)])
def test_several_servers(servers: int, load: float) -> None:
    """M/M/c: the mean wait is C(c, a) / (c mu - lambda)."""
    outcome = simulate(poisson(load, 50_000), EXPONENTIAL, Fleet(servers, queue=None))
    assert outcome.latencies.mean() == pytest.approx(1 + erlang_c(servers, load) / (servers - load), rel=0.06)


def test_fixed_service() -> None:
    """M/D/1: the mean wait is rho / (2 mu (1 - rho)), half of M/M/1's (Pollaczek and Khinchine)."""
    outcome = simulate(poisson(0.7, 50_000), FIXED, Fleet(1, queue=None))
    assert outcome.latencies.mean() == pytest.approx(1 + 0.7 / (2 * 0.3), rel=0.04)


def test_no_place_to_wait() -> None:
    """M/G/c/c: Erlang's B is the share that is rejected, whatever the service's distribution."""
    load, servers = 3.0, 4
    terms = [load**k / math.factorial(k) for k in range(servers + 1)]
    for service in (EXPONENTIAL, FIXED):
        outcome = simulate(poisson(load, 30_000), service, Fleet(servers, queue=0))
        assert outcome.rejected_share == pytest.approx(terms[-1] / sum(terms), rel=0.05)


@pytest.mark.parametrize(
    "fleet",
    [
        Fleet(2, queue=None),
        Fleet(3, queue=5, minimum=1, cold_start=3, idle=10),
        Fleet(2, loras=3, swap=0.5, between_failures=50, repair=5, cold_start=2),
    ],
)
def test_little_s_law(fleet: Fleet) -> None:
    """Edits inside, counted by the clock, are arrivals a second times their mean time, without rejected ones."""
    times = Bursty(1.2, seconds=20).times(5000, np.random.default_rng(0))
    outcome = simulate(times, Service("x", (1.0, 1.5)), fleet)
    made = len(outcome.latencies)
    assert made + outcome.rejected == len(times)
    assert outcome.inside == pytest.approx(made / outcome.seconds * outcome.latencies.mean(), rel=1e-9)


def test_the_seed_decides() -> None:
    fleet = Fleet(2, loras=3, swap=0.2, between_failures=100, repair=5)
    times = poisson(1.5, 3000)
    first, same, other = (simulate(times, EXPONENTIAL, fleet, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.latencies, same.latencies)
    assert not np.array_equal(first.latencies, other.latencies)


def latencies(times: list[float], service: Service, fleet: Fleet) -> list[float]:
    return simulate(np.array(times), service, fleet).latencies.round(6).tolist()


def test_who_waits_shares_a_batch() -> None:
    """The first runs alone until 1; the next three are a batch of two until 2.5, and one until 3.5."""
    batches = Service("x", (1.0, 1.5), overhead=0.25)
    assert latencies([0.0, 0.2, 0.4, 0.6], batches, Fleet(1)) == [1.25, 2.55, 2.35, 3.15]


def test_a_window_gathers_a_batch() -> None:
    """The first waits until 0.5, and the second comes with it."""
    batches = Service("x", (1.0, 1.5))
    assert latencies([0.0, 0.4], batches, Fleet(1, window=0.5)) == [2.0, 1.6]


def test_rejections() -> None:
    outcome = simulate(np.array([0.0, 0.1, 0.2, 0.3]), FIXED, Fleet(1, queue=1))
    assert outcome.latencies.round(6).tolist() == [1.0, 1.9]
    assert (outcome.rejected, outcome.rejected_share) == (2, 0.5)


def test_a_batch_has_one_lora_and_a_change_takes_time() -> None:
    """However the seed gives them out: a change of the LoRA adds 0.5 s, and only edits of one LoRA share a batch."""
    times = np.arange(40) * 10.0  # never two at a time
    outcome = simulate(times, Service("x", (1.0, 1.0)), Fleet(1, loras=2, swap=0.5))
    values, counts = np.unique(outcome.latencies.round(6), return_counts=True)
    assert values.tolist() == [1.0, 1.5]
    assert 10 <= counts[1] <= 30
    together = simulate(np.zeros(40) + 1e-3 * np.arange(40), Service("x", (1.0, 1.0)), Fleet(1, loras=2))
    assert 20 <= together.seconds < 23  # batches of two but for the last of each LoRA, and the first


def test_gpus_start_on_demand_and_stop() -> None:
    """At 0.0 the one GPU takes an edit; the next two wait, which is more than one batch: at 0.2 another starts. The
    first one has nothing to do from 3.0 on, and stops at 13.0; the other is then the one that always runs."""
    fleet = Fleet(2, minimum=1, cold_start=5.0, idle=10.0)
    outcome = simulate(np.array([0.0, 0.1, 0.2, 30.0]), FIXED, fleet)
    assert outcome.latencies.round(6).tolist() == [1.0, 1.9, 2.8, 1.0]
    assert outcome.paid == pytest.approx(13.0 + 30.8)


def test_a_fleet_that_sleeps() -> None:
    """No GPU runs: each edit waits for a cold start, and a GPU stops 2 s after it."""
    fleet = Fleet(1, minimum=0, cold_start=5.0, idle=2.0)
    outcome = simulate(np.array([0.0, 20.0]), FIXED, fleet)
    assert outcome.latencies.round(6).tolist() == [6.0, 6.0]
    assert outcome.paid == pytest.approx(8.0 + 6.0)


def test_failures_make_edits_again_and_take_gpus_away() -> None:
    """All edits are made in the end; a GPU is up for between / (between + repair) of the time."""
    fleet = Fleet(1, queue=None, between_failures=40.0, repair=10.0)
    outcome = simulate(poisson(0.3, 6000), FIXED, fleet)
    assert len(outcome.latencies) == len(poisson(0.3, 6000))
    # Failures come while it is up only: one in 50 s.
    assert outcome.failures == pytest.approx(outcome.seconds / 50, rel=0.15)
    assert outcome.latencies.max() > 10


def test_nothing_arrives() -> None:
    outcome = simulate(np.array([]), FIXED, Fleet(1))
    assert (len(outcome.latencies), outcome.rejected_share, outcome.seconds) == (0, 0.0, 0.0)
    assert outcome.percentile(95) == math.inf
