"""Gate and residual, in place in a view, in the interpreter against float64."""

from __future__ import annotations

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import residual

from .conftest import check_operator, error


@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "bound"), [(1, 8, torch.float32, 1e-6), (5, 123, torch.float16, 1e-3)]
)
def test_it_changes_only_the_view(tokens: int, width: int, dtype: torch.dtype, bound: float) -> None:
    g = torch.Generator().manual_seed(tokens)
    joint = torch.randn(2, tokens + 3, width, generator=g).to(dtype)
    before = joint.clone()
    gate = torch.randn(2, 3, width, generator=g).to(dtype)[:, 1]
    y = torch.randn(2, tokens + 1, width + 5, generator=g).to(dtype)[:, 1:, :width]
    residual.launch_gate_residual(joint[:, 1 : 1 + tokens], gate, y)
    wanted = before[:, 1 : 1 + tokens].double() + gate.double()[:, None] * y.double()
    assert error(joint[:, 1 : 1 + tokens], wanted) < bound
    assert torch.equal(joint[:, :1], before[:, :1])
    assert torch.equal(joint[:, 1 + tokens :], before[:, 1 + tokens :])
    expected = before.clone()
    residual.gate_residual_reference(expected[:, 1 : 1 + tokens], gate, y)
    assert error(expected, joint) < bound


def test_the_operator_and_its_refusals() -> None:
    x = torch.randn(1, 3, 16)
    check_operator(residual.gate_residual_op, (x.clone(), torch.randn(1, 16), x))
    with pytest.raises(KontextError, match="x and y must have one shape"):
        residual.launch_gate_residual(x, torch.randn(1, 16), x[:, :2])
