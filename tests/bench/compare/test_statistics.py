"""Tests of significance against their definitions: counts of orders and of signs by hand, and simulated noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from kontext.bench.compare.kinds import RATIO, SECONDS, SUCCESS
from kontext.bench.compare.statistics import independent_change, paired_change, single_change


def test_runs_that_do_not_overlap() -> None:
    """Of the 126 orders of 5 and 4 values, 2 have them apart."""
    change = independent_change(SECONDS, [1.0, 1.1, 1.2, 1.3, 1.4], [2.4, 2.5, 2.6, 2.7])
    assert change.p == pytest.approx(2 / 126)
    assert change.least_p == pytest.approx(2 / 126)
    assert (change.before, change.after) == (1.2, pytest.approx(2.55))
    assert change.change == pytest.approx(2.55 / 1.2 - 1)
    assert change.interval is not None
    assert change.interval[0] < change.change < change.interval[1]


def test_one_value_among_others() -> None:
    """U = 2 of 1 and 4 values: of 5 equally likely places, the middle one is no evidence."""
    assert independent_change(SECONDS, [3.0], [1.0, 2.0, 4.0, 5.0]).p == pytest.approx(1.0)


def test_pairs_that_all_fall() -> None:
    """Of the 2^6 signs of six differences, 2 are all alike."""
    before = [40.0, 42.0, 44.0, 41.0, 43.0, 45.0]
    change = paired_change(RATIO, before, [each - 1 - 0.1 * n for n, each in enumerate(before)])
    assert change.p == pytest.approx(2 / 2**6)
    assert change.least_p == pytest.approx(2 / 2**6)
    assert change.change == pytest.approx(-1.25)


def test_pairs_see_what_spread_hides() -> None:
    """The edits differ by 20 dB, the sides by 1: as independent samples this is noise."""
    rng = np.random.default_rng(0)
    before = rng.normal(40, 20, 40)
    after = before - rng.normal(1, 0.2, 40)
    paired = paired_change(RATIO, list(before), list(after))
    assert paired.p is not None
    assert paired.p < 1e-6
    assert independent_change(RATIO, list(before), list(after)).p > 0.5  # type: ignore[operator]


def test_verdicts_on_the_same_edits() -> None:
    """McNemar: 1 of 9 edits that changed got better; 2 · (C(9,0) + C(9,1)) / 2^9."""
    before = [1.0] * 8 + [0.0] + [1.0] * 11
    after = [0.0] * 8 + [1.0] + [1.0] * 11
    change = paired_change(SUCCESS, before, after)
    assert change.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert change.change == pytest.approx(-7 / 20)


@pytest.mark.parametrize("kind", [SECONDS, RATIO, SUCCESS])
def test_equal_values_are_no_change(kind) -> None:  # type: ignore[no-untyped-def]
    same = [1.0, 1.0, 1.0]
    for change in (independent_change(kind, same, same), paired_change(kind, same, same)):
        assert (change.p, change.change, change.interval) == (1.0, 0.0, (0.0, 0.0))


def test_what_is_measured_once() -> None:
    assert single_change(SECONDS, 2.0, 3.0).change == pytest.approx(0.5)
    assert single_change(RATIO, 40.0, 38.5).change == pytest.approx(-1.5)
    assert single_change(SECONDS, 0.0, 0.0).change == 0.0
    assert math.isinf(single_change(SECONDS, 0.0, 1.0).change)


def test_noise_alone_is_significant_as_often_as_alpha_says() -> None:
    """200 comparisons of the same distribution at 5 %: 10 expected, 20 would be three standard deviations off."""
    rng = np.random.default_rng(1)
    found = [independent_change(SECONDS, *rng.lognormal(0, 0.1, (2, 10))).p for _ in range(60)]
    assert sum(p < 0.05 for p in found if p is not None) <= 8


def test_intervals_hold_the_true_change_as_often_as_they_say() -> None:
    """Means of pairs, 30 edits: of 60 intervals of 95 %, 57 expected; 50 would be four standard deviations off."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(60):
        before = rng.normal(40, 5, 30)
        interval = paired_change(RATIO, list(before), list(before + rng.normal(0.5, 1, 30))).interval
        assert interval is not None
        held += interval[0] <= 0.5 <= interval[1]
    assert held >= 50
