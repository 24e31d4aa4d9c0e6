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
    hessian = hessian + torch.eye(len(hessian)) * 0.01 * hessian.diagonal().mean()  # the paper's 1 %
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


def test_the_size_of_the_moments_does_not_matter() -> None:
    """As many inputs more, or inputs in another unit: by a power of two, so that all bits stay."""
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(5))
    inputs = correlated_inputs(300, 64)
    moments, scales = (inputs.t() @ inputs)[None], weight.abs().amax(0, keepdim=True) / 7
    expected = gptq.round_with_feedback(weight, moments, scales, nearest)
    for factor in (2.0**-40, 2.0**20):
        assert torch.equal(gptq.round_with_feedback(weight, moments * factor, scales, nearest), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_offsets_go_with_their_rows_and_columns(groups: int) -> None:
    """Unrelated inputs of different sizes: rows are rounded in another order, and each to the nearest."""
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(64, 5, generator=generator)
    moments = torch.diag(torch.rand(64, generator=generator) + 0.1)[None]
    scales = torch.rand(groups, 5, generator=generator) / 4 + 0.1
    offsets = torch.randint(0, 16, (groups, 5), generator=generator).float()

    def with_zero_point(units: Tensor, offset: Tensor | None) -> Tensor:
        assert offset is not None
        return (units.round() + offset).clamp(0, 15) - offset

    rows = 64 // groups
    steps, shifts = (each.repeat_interleave(rows, dim=0) for each in (scales, offsets))
    found = gptq.round_with_feedback(weight, moments, scales, with_zero_point, offsets)
    assert torch.equal(found, with_zero_point(weight / steps, shifts))


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
