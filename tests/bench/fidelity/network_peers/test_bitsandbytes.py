"""bitsandbytes' linears on a CPU, on normal numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")

import torch

from kontext.bench.fidelity.network_peers import bitsandbytes
from kontext.bench.fidelity.network_peers.torch_networks import TorchMethod

Measure = Callable[[TorchMethod], tuple[float, float]]


@pytest.mark.parametrize(
    ("method", "low", "high", "bits"),
    [(bitsandbytes.INT8, 38, 43, 8 + 32 / 192), (bitsandbytes.FP4, 17, 20, 4 + 32 / 64)],
)
def test_error_and_bits(
    method: TorchMethod, low: float, high: float, bits: float, one_linear: Measure
) -> None:
    ratio, found = one_linear(method)
    assert low < ratio < high
    assert found == pytest.approx(bits)


def test_int8_rounds_inputs() -> None:
    """In training mode the library would not: its result would be that of the rounded weights."""
    network = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False)).eval().requires_grad_(False)
    inputs = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(0))
    bitsandbytes.INT8.quantize(network, ["0"], lambda: None)
    found = network(inputs)
    state = network[0].state
    weights = state.CB.float() * state.SCB[:, None] / 127
    scales = inputs.abs().amax(dim=-1, keepdim=True) / 127
    expected = (inputs / scales).round() * scales @ weights.T
    assert torch.allclose(found, expected, atol=2e-2)
    assert (found - inputs @ weights.T).abs().max() > 2 * (found - expected).abs().mean()
