"""Arrivals against what is known of Poisson processes; scipy's tests are the oracle of distributions."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("simpy")

from kontext.bench.capacity.arrivals import Arrivals, Bursty, Poisson


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    stats = pytest.importorskip("scipy.stats")
    times = Poisson(2.0).times(5_000, np.random.default_rng(0))
    assert len(times) == pytest.approx(10_000, abs=4 * 100)  # four standard deviations
    assert stats.kstest(np.diff(times), "expon", (0, 0.5)).pvalue > 0.001


def dispersion(arrivals: Arrivals, window: float) -> float:
    """Variance over mean of the counts in windows: 1 for a Poisson process."""
    times = arrivals.times(window * 2000, np.random.default_rng(1))
    counts = np.bincount((times / window).astype(int), minlength=2000)
    return float(counts.var() / counts.mean())


def test_bursts_have_the_rate_and_more_spread() -> None:
    bursty = Bursty(2.0, peak=3.0, share=0.2, seconds=30.0)
    times = bursty.times(600_000, np.random.default_rng(0))
    assert len(times) / 600_000 == pytest.approx(2.0, rel=0.03)
    assert dispersion(Poisson(2.0), 30.0) == pytest.approx(1.0, abs=0.15)
    assert dispersion(bursty, 30.0) > 5


@pytest.mark.parametrize("arrivals", [Poisson(3.0), Bursty(3.0), Bursty(3.0, peak=5.0)])
def test_times_ascend_and_come_from_the_seed(arrivals: Arrivals) -> None:
    first, same, other = (arrivals.times(500, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert (np.diff(first) >= 0).all()
    assert 0 <= first[0] <= first[-1] <= 500
