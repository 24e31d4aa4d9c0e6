"""The scale of inputs: the largest value fills the range, unless it is an outlier."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.channel_scaling import HEADROOM, channel_factors  # noqa: E402
from kontext.quant.formats import FORMATS  # noqa: E402
from kontext.quant.formats.fp8 import FP8  # noqa: E402
from kontext.quant.formats.int8 import INT8  # noqa: E402
from kontext.quant.static_scale import static_scale  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402


def test_the_static_scale_reaches_the_largest_unless_it_is_alone() -> None:
    values = torch.randn(4000, 128, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics.empty(128)
    statistics.add(values, 0)
    scale = static_scale(statistics, FP8)
    assert 0.5 <= scale * 448 / float(values.abs().max()) <= 1.0
    assert static_scale(InputStatistics.empty(4), FP8) == 1.0


def test_integers_have_the_scale_of_least_error() -> None:
    """Oracle: the squared error of the values themselves, over many scales."""
    values = torch.randn(4000, 128, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 40.0  # alone: to reach it would cost all others 18 dB
    statistics = InputStatistics.empty(128)
    statistics.add(values, 0)

    def error(scale: float) -> float:
        return float(((values / scale).round().clamp(-127, 127) * scale - values).square().sum())

    found = static_scale(statistics, INT8)
    best = min(error(40 / 127 * 0.97**power) for power in range(100))
    assert error(found) < 1.1 * best < 0.5 * error(40 / 127)


def test_scaled_inputs_have_headroom() -> None:
    statistics = InputStatistics.empty(2)
    statistics.add(torch.tensor([[-1.0, 0.0], [3.0, 8.0]]), 0)
    centre = statistics.middle()
    assert centre.tolist() == [1.0, 4.0]
    factors = channel_factors(statistics, centre)
    assert static_scale(statistics, INT8, centre) == pytest.approx(4 / 127)
    # The reaches 2 and 4, the first times sqrt(2).
    assert static_scale(statistics, INT8, centre, factors) == pytest.approx(HEADROOM * 4 / 127)


def test_formats_of_4_bits_have_none() -> None:
    with pytest.raises(ValueError, match="inputs are not rounded to int4"):
        static_scale(InputStatistics.empty(4), FORMATS["int4"])
