"""Verdicts on figures whose change is known."""

from __future__ import annotations

import pytest

pytest.importorskip("scipy")

from kontext.bench.compare.figures import Figure
from kontext.bench.compare.kinds import BYTES, LIKENESS, LIKENESS_100, RATE, RATIO, SECONDS, SUCCESS
from kontext.bench.compare.verdicts import BETTER, FEW, SAME, WITHIN, WORSE, Rules, judge, judge_figures

TIMES = (1.00, 1.01, 1.02, 1.03, 1.04, 1.05)


def times(factor: float, kind=SECONDS) -> Figure:  # type: ignore[no-untyped-def]
    return Figure("x", kind, samples=tuple(factor * each for each in TIMES))


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.2, WORSE), (0.8, BETTER), (1.045, WITHIN), (1.005, SAME), (1.0, SAME)],
)
def test_of_times(factor: float, verdict: str) -> None:
    assert judge(times(1), times(factor), Rules())["verdict"] == verdict


def test_more_is_better_for_rates() -> None:
    assert judge(times(1, RATE), times(1.2, RATE), Rules())["verdict"] == BETTER
    assert judge(times(1, RATE), times(0.8, RATE), Rules())["verdict"] == WORSE


def test_rules() -> None:
    assert judge(times(1), times(1.2), Rules(threshold=0.3))["verdict"] == WITHIN
    assert judge(times(1), times(1.2), Rules(alpha=1e-6))["verdict"] == FEW


def test_too_few_runs() -> None:
    """Of three and three runs none can be told from chance at 5 %: 2 of 20 orders."""
    few = [Figure("x", SECONDS, samples=(factor, 1.1 * factor, 1.2 * factor)) for factor in (1, 9)]
    row = judge(*few, Rules())
    assert (row["verdict"], row["p"]) == (FEW, pytest.approx(0.1))


def test_what_is_measured_once_is_judged_by_the_threshold() -> None:
    def size(value: float) -> Figure:
        return Figure("x", BYTES, value=value)

    assert judge(size(100), size(106), Rules())["verdict"] == WORSE
    assert judge(size(100), size(104), Rules())["verdict"] == WITHIN
    assert judge(size(100), size(90), Rules())["verdict"] == BETTER
    row = judge(size(100), size(100), Rules())
    assert (row["verdict"], row["p"], row["interval"]) == (SAME, None, None)


def test_decibels_and_points() -> None:
    edits = [f"edit-{number}" for number in range(20)]

    def ratios(lower: float) -> Figure:
        return Figure("x", RATIO, paired={key: 40 + n - lower * (1 + n / 50) for n, key in enumerate(edits)})

    assert judge(ratios(0), ratios(1), Rules())["verdict"] == WORSE
    assert judge(ratios(0), ratios(0.2), Rules())["verdict"] == WITHIN
    assert judge(ratios(0), ratios(1), Rules(threshold_db=3))["verdict"] == WITHIN
    good = Figure("x", SUCCESS, paired=dict.fromkeys(edits, 1.0))
    bad = Figure("x", SUCCESS, paired={key: float(n >= 8) for n, key in enumerate(edits)})
    row = judge(good, bad, Rules())
    assert (row["verdict"], row["change"], row["p"]) == (WORSE, -0.4, pytest.approx(2 / 2**8, rel=1e-4))


def test_likenesses_are_judged_by_their_distance_from_the_perfect_value() -> None:
    """By hand: from 1 - 0.9986 to 1 - 0.9536 is 0.0464 / 0.0014 - 1 = 3214 % more error."""

    def likeness(value: float, kind=LIKENESS) -> Figure:  # type: ignore[no-untyped-def]
        return Figure("x", kind, paired={str(n): value - 1e-6 * n for n in range(20)})

    row = judge(likeness(0.9986), likeness(0.9536), Rules())
    assert (row["verdict"], row["change"]) == (WORSE, pytest.approx(0.0464 / 0.0014 - 1, rel=0.01))
    assert judge(likeness(0.9536), likeness(0.9986), Rules())["verdict"] == BETTER
    assert judge(likeness(0.9986), likeness(0.9978), Rules())["verdict"] == WITHIN, "noise of size"
    assert judge(likeness(0.50), likeness(0.49), Rules())["verdict"] == WITHIN, "2 % more error"
    assert judge(likeness(1), likeness(0.9), Rules())["verdict"] == WORSE, "from a perfect value"
    of_100 = [likeness(value, LIKENESS_100) for value in (90.0, 85.0, 89.95)]
    assert [judge(of_100[0], each, Rules())["verdict"] for each in of_100] == [SAME, WORSE, WITHIN]


def test_only_edits_that_both_have_are_compared() -> None:
    first = Figure("x", RATIO, paired={"a": 40.0, "b": 41.0, "c": 90.0})
    second = Figure("x", RATIO, paired={"b": 41.0, "a": 40.0, "d": 10.0})
    row = judge(first, second, Rules())
    assert (row["a"], row["b"], row["change"], row["runs"]) == (40.5, 40.5, 0.0, [3, 3])
    with pytest.raises(ValueError, match="no edit is in both"):
        judge(first, Figure("x", RATIO, paired={"e": 1.0}), Rules())
    with pytest.raises(ValueError, match="only one of the results keeps the values"):
        judge(first, Figure("x", RATIO, value=1.0), Rules())


def test_figures_that_only_one_has_are_left_out() -> None:
    rows = judge_figures({"x": times(1), "y": times(1)}, {"x": times(1)}, Rules())
    assert [row["name"] for row in rows] == ["x"]
