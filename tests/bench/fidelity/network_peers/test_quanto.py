"""optimum-quanto with static scales of inputs and outputs, on normal numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
pytest.importorskip("optimum.quanto")

from kontext.bench.fidelity.network_peers import quanto
from kontext.bench.fidelity.network_peers.torch_networks import TorchMethod

Measure = Callable[[TorchMethod], tuple[float, float]]
AROUND = 2 * 32 / (192 * 256)
"""The scales of inputs and outputs."""


@pytest.mark.parametrize(
    ("method", "low", "high", "bits"),
    [
        (quanto.FP8, 26, 30, 8 + 32 / 192 + AROUND),
        (quanto.INT8, 34, 42, 8 + 32 / 192 + AROUND),
        (quanto.INT4_INT8, 17, 22, 4 + 2 * 32 / 96 + AROUND),  # 96: the largest group that divides 192
    ],
)
def test_error_and_bits(
    method: TorchMethod, low: float, high: float, bits: float, one_linear: Measure
) -> None:
    ratio, found = one_linear(method)
    assert low < ratio < high
    assert found == pytest.approx(bits)
