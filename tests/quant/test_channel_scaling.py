"""Factors that even out the ranges of a linear's inputs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.channel_scaling import NARROWEST, channel_factors  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402


def test_ranges_are_evened_out_halfway() -> None:
    """SmoothQuant's formula with a strength of 0.5 and no weights: ranges to the power of 0.5."""
    statistics = InputStatistics.empty(3)
    statistics.add(torch.tensor([[16.0, -4.0, 1.0], [0.0, 0.0, 0.0]]), 0)
    assert channel_factors(statistics, None).tolist() == [1.0, 2.0, 4.0]


def test_channels_that_were_always_zero_have_a_finite_factor() -> None:
    statistics = InputStatistics.empty(2)
    statistics.add(torch.tensor([[5.0, 0.0]]), 0)
    assert channel_factors(statistics, None).tolist() == [1.0, NARROWEST**-0.5]
    assert channel_factors(InputStatistics.empty(2), None).tolist() == [1.0, 1.0]
