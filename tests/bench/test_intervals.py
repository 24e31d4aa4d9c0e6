"""Intervals of means: against normal theory, and where there is no spread."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy import stats

from kontext.bench.intervals import FEWEST, mean_interval


def test_it_agrees_with_student_s_interval_of_normal_values() -> None:
    values = np.random.default_rng(5).normal(3, 2, 200)
    low, high = mean_interval(list(values)) or (0, 0)
    expected = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=0.06)


def test_the_same_seed_gives_the_same() -> None:
    values = list(np.random.default_rng(5).normal(0, 1, 30))
    assert mean_interval(values, 3) == mean_interval(values, 3)
    assert mean_interval(values, 3) != mean_interval(values, 4)


def test_values_without_spread() -> None:
    assert mean_interval([2.0] * FEWEST) == (2.0, 2.0)


def test_a_sample_is_contained() -> None:
    """Two values: every resample lies between them."""
    low, high = mean_interval([0.0, 1.0] * 3) or (9, 9)
    assert 0 <= low < high <= 1


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [1.0, 1.2, 1.1, 1.3, 1.0]])
def test_few_values_have_no_interval(values: list[float]) -> None:
    """scipy's sign test of as many values, all above 0, finds nothing; of one more it does."""
    assert mean_interval(values) is None
    assert stats.binomtest(len(values), len(values)).pvalue > 0.05
    assert stats.binomtest(FEWEST, FEWEST).pvalue < 0.05
