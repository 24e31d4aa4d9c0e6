"""The E4M3 scale of inputs: the largest value fills the range, unless it is an outlier."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.static_scale import static_scale  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402


def test_the_static_scale_reaches_the_largest_unless_it_is_alone() -> None:
    values = torch.randn(4000, 128, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics.empty(128)
    statistics.add(values, 0)
    scale = static_scale(statistics)
    assert 0.5 <= scale * 448 / float(values.abs().max()) <= 1.0
    assert static_scale(InputStatistics.empty(4)) == 1.0
