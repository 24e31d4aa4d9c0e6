"""Means of measures, and errors beside the difference of two seeds."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("scipy")

from kontext.bench.edit_fidelity.measures import LATENTS
from kontext.bench.edit_fidelity.summaries import beside_seeds, summary


def test_edits_that_a_measure_does_not_apply_to_are_left_out() -> None:
    found = summary([{"psnr": 30.0}, {"psnr": 40.0}] * 3 + [{"psnr": None}, {}], 0)
    assert found["psnr"] == 35
    assert found["psnr_each"] == [30, 40] * 3 + [None, None]
    assert 30 <= found["psnr_interval"][0] <= 35 <= found["psnr_interval"][1] <= 40
    assert set(found) == {"psnr", "psnr_interval", "psnr_each"}


def test_the_ratio_of_errors_by_hand() -> None:
    """Errors of 2 levels where another seed makes 8: a quarter, below in every edit. PSNR is 20 log10(255 / error)."""
    ours, seeds = ([{"psnr": 20 * math.log10(255 / each)} for each in (level,) * 6] for level in (2, 8))
    same = [{"psnr": 100.0}] * 6
    found = beside_seeds(ours, seeds, same, 0)["psnr"]
    assert found["ratio"] == 0.25
    assert found["interval"] == pytest.approx([-6, -6])
    assert found["verdict"] == "below"
    assert beside_seeds(seeds, ours, same, 0)["psnr"]["verdict"] == "above"


def test_measures_of_the_result_alone_are_compared_with_the_reference_s() -> None:
    """Accepted edits: the reference's 1, 0, 1, 1; the other seed changes three, we change the last."""
    known, seeded, ours = (
        [{"success": float(each)} for each in row] for row in ((1, 0, 1, 1), (0, 1, 0, 1), (1, 0, 1, 0))
    )
    found = beside_seeds(ours, seeded, known, 0)["success"]
    assert found["ratio"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["verdict"] == "open"


def test_the_reference_beside_itself() -> None:
    same = [{"psnr": 100.0, "latent_distance": 0.0, "success": 1.0}] * 3
    other = [{"psnr": 30.0 + n, "latent_distance": 0.1 + n, "success": 1.0} for n in range(3)]
    found = beside_seeds(same, other, same, 0)
    assert [found[name]["ratio"] for name in ("psnr", "latent_distance", "success")] == [0, 0, None]
    assert [found[name]["verdict"] for name in ("psnr", "latent_distance", "success")] == [
        "equal",
        "equal",
        "equal",
    ]


def test_few_edits_have_no_interval_and_no_verdict() -> None:
    """Errors of 2 levels where another seed makes 8, in two edits only."""
    ours, seeds, same = ([{"psnr": each}] * 2 for each in (42.1, 30.1, 100.0))
    assert summary(ours, 0)["psnr_interval"] is None
    found = beside_seeds(ours, seeds, same, 0)["psnr"]
    assert (found["interval"], found["verdict"]) == (None, "open")


def test_equal_pictures_have_no_error() -> None:
    perfect = {
        "latent_distance": 0.0,
        "psnr": 100.0,
        "kept_psnr": 100.0,
        "kept_ssim": 1.0,
        "kept_delta_e": 0.0,
    }
    for name, measure in LATENTS.items():
        assert measure.difference(perfect[name], perfect[name]) == 0
