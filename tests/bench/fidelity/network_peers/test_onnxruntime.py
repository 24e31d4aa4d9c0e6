"""ONNX Runtime's quantization tools on a graph of two products."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench.fidelity.network_peers import onnxruntime
from kontext.bench.fidelity.network_peers.graphs import GraphMethod

Measure = Callable[[GraphMethod], tuple[float, float]]


def test_dynamic(one_product: Measure) -> None:
    ratio, bits = one_product(onnxruntime.DYNAMIC)
    assert 34 < ratio < 42
    assert bits == pytest.approx(8 + 32 / 192)


def test_static(one_product: Measure) -> None:
    """The input's scale, and its zero point in 8 bits, count too."""
    ratio, bits = one_product(onnxruntime.STATIC)
    assert 34 < ratio < 42
    assert bits == pytest.approx(8 + 32 / 192 + (32 + 8) / (192 * 256))
