"""GPTQ's error feedback against the plain algorithm of its paper, and against rounding to the nearest."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from kontext.quant import gptq  # noqa: E402


def correlated_inputs(rows: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width // 4, width, generator=generator)
    return torch.randn(rows, width // 4, generator=generator) @ mixing + 0.1 * torch.randn(
        rows, width, generator=generator
    )


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return units.round().clamp(-7, 7)


def textbook(weight: Tensor, moments: Tensor, scales: Tensor) -> Tensor:
    """Algorithm 1 of arXiv:2210.17323 one row at a time, the inverse updated by Gaussian elimination, in fp64."""
    weight, hessian = weight.double().clone(), moments.double()
    hessian = hessian + torch.eye(len(hessian)) * gptq.DAMPING * hessian.diagonal().mean()
    order = moments.diagonal().argsort(descending=True, stable=True)
    inverse = torch.linalg.inv(hessian)
    units = torch.zeros_like(weight)
    left = list(order)
    for row in order:
        units[row] = nearest(weight[row] / scales)
        error = (weight[row] - units[row] * scales) / inverse[row, row]
        left.remove(row)
        for other in left:
            weight[other] -= inverse[other, row] * error
        inverse = inverse - inverse[:, row : row + 1] @ inverse[row : row + 1] / inverse[row, row]
    return units


def test_it_is_the_papers_algorithm() -> None:
    weight = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))
    inputs = correlated_inputs(400, 96)
    moments = inputs.t() @ inputs
    scales = weight.abs().amax(0, keepdim=True) / 7
    units = gptq.round_with_feedback(weight, moments[None], scales, nearest)
    expected = textbook(weight, moments, scales[0].double())
    # fp32 against fp64: now and then a value lies just between two integers.
    assert (units == expected).float().mean() > 0.99


@pytest.mark.parametrize(("blocks", "groups"), [(1, 1), (1, 2), (2, 2), (2, 1), (4, 2)])
def test_outputs_come_closer_than_by_rounding(blocks: int, groups: int) -> None:
    weight = torch.randn(128, 32, generator=torch.Generator().manual_seed(2))
    inputs = correlated_inputs(2000, 128)
    size = 128 // blocks
    moments = torch.stack([part.t() @ part for part in inputs.split(size, dim=1)])
    scales = weight.view(groups, -1, 32).abs().amax(1) / 7
    spread = scales.repeat_interleave(128 // groups, dim=0)

    def error(units: Tensor) -> float:
        return float((inputs @ (units * spread - weight)).norm() / (inputs @ weight).norm())

    units = gptq.round_with_feedback(weight, moments, scales, nearest)
    assert torch.equal(units, nearest(units))
    assert error(units) < 0.9 * error(nearest(weight / spread))


def test_unrelated_inputs_and_unseen_ones_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    scales = weight.abs().amax(0, keepdim=True) / 7
    expected = nearest(weight / scales)
    for moments in (torch.eye(64)[None] * 5, torch.zeros(1, 64, 64)):
        assert torch.equal(gptq.round_with_feedback(weight, moments, scales, nearest), expected)


def test_the_weight_is_left_alone_and_columns_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 40, generator=torch.Generator().manual_seed(4))
    inputs = correlated_inputs(300, 64)
    moments, scales, before = (inputs.t() @ inputs)[None], torch.full((1, 40), 0.3), weight.clone()
    whole = gptq.round_with_feedback(weight, moments, scales, nearest)
    monkeypatch.setattr(gptq, "COLUMNS", 16)
    assert torch.equal(gptq.round_with_feedback(weight, moments, scales, nearest), whole)
    assert torch.equal(weight, before)


def test_moments_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="moments of 2 x 32 inputs do not fit a weight of 96"):
        gptq.round_with_feedback(torch.zeros(96, 4), torch.zeros(2, 32, 32), torch.ones(1, 4), nearest)
