"""Smoothing: outlying input channels are tamed where inputs are rounded with one scale, and products stay the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from kontext.quant.smoothing import smoothing_factors  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def statistics(inputs: Tensor, moments: bool = True) -> InputStatistics:
    result = InputStatistics.empty(inputs.shape[1], moments)
    result.add(inputs, 0)
    return result


def rounded(inputs: Tensor) -> Tensor:
    """As DynamicQuantizeLinear: one scale and zero point for all."""
    low, high = inputs.min().clamp(max=0), inputs.max().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    return ((inputs / scale).round() + zero).clamp(0, 255).sub(zero) * scale


@pytest.mark.parametrize("moments", [True, False])
def test_outliers_cost_less(moments: bool) -> None:
    inputs, weight = noise(500, 64), noise(64, 32, seed=1)
    inputs[:, 3] *= 60
    factors = smoothing_factors(weight, statistics(inputs, moments))
    expected = inputs @ weight

    def error(factors: Tensor) -> float:
        weights = weight / factors[:, None]
        step = weights.abs().amax(0) / 127
        product = rounded(inputs * factors) @ ((weights / step).round() * step)
        return float((product - expected).norm() / expected.norm())

    assert error(factors) < 0.4 * error(torch.ones(64))
    assert factors[3] <= factors.median() / 4


def test_factors_are_powers_of_two() -> None:
    inputs = noise(200, 64) * torch.logspace(-2, 2, 64)
    factors = smoothing_factors(noise(64, 16, seed=2), statistics(inputs))
    assert torch.equal(torch.frexp(factors).mantissa, torch.full((64,), 0.5))


def test_even_inputs_are_left_alone() -> None:
    inputs = torch.sign(noise(500, 64))
    factors = smoothing_factors(torch.sign(noise(64, 16, seed=3)), statistics(inputs))
    assert torch.equal(factors, torch.ones(64))


def test_dead_channels_and_dead_rows_do_no_harm() -> None:
    inputs, weight = noise(100, 64), noise(64, 16, seed=4)
    inputs[:, 5], weight[9] = 0, 0
    inputs[:, 11] *= 100
    factors = smoothing_factors(weight, statistics(inputs))
    assert torch.isfinite(factors).all()
    assert (factors > 0).all()
    assert factors[5] == factors[9] == 1
    assert torch.equal(smoothing_factors(weight, statistics(torch.zeros(3, 64))), torch.ones(64))
