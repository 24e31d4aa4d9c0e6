"""Gate and residual, in place in a view, in the interpreter against float64."""

from __future__ import annotations

from collections.abc import Callable

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


@pytest.mark.parametrize("run", [residual.launch_gate_residual, residual.gate_residual_reference])
def test_fp16_saturates(run: Callable[..., None]) -> None:
    """As diffusers clips FLUX's streams: 65504 for infinity, and NaN stays visible; fp32 is not clipped. Oracle:
    float64."""
    x = torch.tensor([[[60000.0, -60000.0, 1.0, float("nan"), -65504.0, float("inf")]]]).half()
    y = torch.tensor([[[2.0, 2.0, 0.5, 1.0, 3.0, 1.0]]]).half()
    gate = torch.tensor([[60000.0, -60000.0, 2.0, 1.0, 20000.0, 1.0]]).half()
    wanted = (x.double() + gate.double()[:, None] * y.double()).clip(-65504, 65504)
    out = x.clone()
    run(out, gate, y)
    assert torch.equal(out.double().nan_to_num(7), wanted.nan_to_num(7))
    assert out.isnan().sum() == 1
    wide = x.float()
    run(wide, gate.float(), y.float())
    assert wide[0, 0, 0] == 180000


@pytest.mark.parametrize("run", [residual.launch_gate_residual, residual.gate_residual_reference])
def test_bf16_does_not_saturate(run: Callable[..., None]) -> None:
    out = torch.full((1, 1, 8), 60000.0).bfloat16()
    run(out, torch.full((1, 8), 60000.0).bfloat16(), torch.ones(1, 1, 8).bfloat16())
    assert (out > 1e5).all()
