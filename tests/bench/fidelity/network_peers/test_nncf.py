"""NNCF on a graph of two products, run by OpenVINO. Its scales are fp16."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("nncf")

from kontext.bench.fidelity.network_peers import nncf
from kontext.bench.fidelity.network_peers.graphs import GraphMethod

Measure = Callable[[GraphMethod], tuple[float, float]]


@pytest.mark.parametrize(
    ("method", "low", "high", "bits"),
    [
        (nncf.INT8_WEIGHTS, 42, 47, 8 + (16 + 8) / 192),
        (nncf.INT4_WEIGHTS, 17, 22, 4 + 16 / 64),
        (nncf.INT4_ASYM_WEIGHTS, 19, 23, 4 + (16 + 4) / 64),
        (nncf.NF4_WEIGHTS, 19, 23, 4 + 16 / 64),
        (nncf.INT8, 34, 43, 8 + 32 / 192 + 2 * 32 / (192 * 256)),
    ],
)
def test_error_and_bits(
    method: GraphMethod, low: float, high: float, bits: float, one_product: Measure
) -> None:
    ratio, found = one_product(method)
    assert low < ratio < high
    assert found == pytest.approx(bits)
