"""Intervals of fidelity: of ratios of sums, pairs, and data without spread."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from kontext.bench.fidelity.intervals import difference, intervals, signal_to_noise
from kontext.bench.intervals import interval


def test_the_velocitys_ratio_is_of_sums() -> None:
    """Noise of 1 and 3 by turns on signals of 200: 20 dB in the mean, and never beyond all ones or all threes."""
    low, high = interval([[200.0] * 40, [1.0, 3.0] * 20], signal_to_noise) or (0, 0)
    assert low < 20 < high
    assert 10 * np.log10(200 / 3) < low
    assert high < 10 * np.log10(200)


def entry(psnr: list[float], noise: list[float]) -> dict[str, object]:
    return {
        "psnr": float(np.mean(psnr)),
        "psnr_each": psnr,
        "noise_each": noise,
        "success_each": [True, False, True, True, True, True],
    }


def test_pairs_tell_apart_what_single_intervals_do_not() -> None:
    """Edits differ by 30 dB from each other, and both entries by a steady 1."""
    hard = [30.0, 40.0, 50.0, 60.0, 70.0, 80.0]
    one = entry([each + 1 + 0.01 * n for n, each in enumerate(hard)], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    other = entry(hard, [1.3, 2.5, 3.9, 5.1, 6.4, 7.7])
    alone = [intervals(each, [9.0] * 6, [True] * 6)["psnr"] for each in (one, other)]
    assert alone[0][0] < alone[1][1]
    low, high = difference(one, other, "psnr") or (0, 0)
    assert 1 <= low < high < 1.04
    low, high = difference(one, other, "velocity_snr") or (0, 0)
    assert 10 * np.log10(1.25) < low < high < 10 * np.log10(1.31)


def test_figures_without_spread_and_few_edits() -> None:
    same = entry([100.0] * 6, [0.0] * 6)
    found = intervals(same, [9.0] * 6, [True, False, True, True, True, True])
    assert found == {"velocity_snr": [200.0, 200.0], "psnr": [100.0, 100.0], "lost_edits": [0.0, 0.0]}
    unjudged = intervals(same | {"success_each": [None] * 6}, [9.0] * 6, [None] * 6)
    assert unjudged.keys() == {"velocity_snr", "psnr"}
    for count in (1, 2, 5):
        few = {"psnr_each": [30.0] * count, "noise_each": [1.0] * count, "success_each": [True] * count}
        assert intervals(few, [9.0] * count, [True] * count) == {}
        assert difference(few, few, "psnr") is None
