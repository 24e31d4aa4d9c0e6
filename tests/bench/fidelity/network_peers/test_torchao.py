"""torchao with inputs rounded per token, on normal numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchao")

from kontext.bench.fidelity.network_peers import torchao
from kontext.bench.fidelity.network_peers.torch_networks import TorchMethod

Measure = Callable[[TorchMethod], tuple[float, float]]


@pytest.mark.parametrize(
    ("method", "low", "high", "bits"),
    [
        (torchao.FP8, 27, 30, 8 + 32 / 192),  # two roundings of 31.6 dB each
        (torchao.INT8, 38, 43, 8 + 32 / 192),
        (torchao.INT4_INT8, 17, 21, 4 + 32 / 64),
    ],
)
def test_error_and_bits(
    method: TorchMethod, low: float, high: float, bits: float, one_linear: Measure
) -> None:
    ratio, found = one_linear(method)
    assert low < ratio < high
    assert found == pytest.approx(bits)
