"""Classes of entries: what a bundle's graphs do to weights and inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench.fidelity.schemes import bundle_scheme, layer_inputs, scheme, scheme_on_cpu
from kontext.quant.formats import FORMATS
from kontext.quant.recipe import Layer
from kontext.runtime.bundle import Bundle


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Layer("fp8"), "W8A16"),
        (Layer("fp8", activations="fp8", centred=True), "W8A8 static"),
        (Layer("int8", activations="int8"), "W8A8 per token"),
        (Layer("int8", activations="int8", rounding="static"), "W8A8 static"),
        (Layer("nvfp4", activations="nvfp4"), "W4A4"),
        (Layer("int4", rank=16), "W4A16"),
        (Layer("int4", activations="int8"), "W4A8"),
    ],
)
def test_a_layers_class(layer: Layer, expected: str) -> None:
    assert scheme(FORMATS[layer.format].bits, *layer_inputs(layer)) == expected


def test_a_bundles_class(bundles: dict[str, Path]) -> None:
    """The FP8 bundle of the random checkpoint is not calibrated, so its inputs are left alone."""
    found = {name: bundle_scheme(Bundle.open(path)) for name, path in bundles.items()}
    assert found == {"fp32": "not quantized", "fp8": "W8A16", "int8": "W8A8 per token", "int4": "W4A16"}


def test_what_onnx_runtime_rounds_on_a_cpu(bundles: dict[str, Path]) -> None:
    """MatMulNBits rounds the inputs of INT4 weights; FP8 is unpacked, and INT8's graph rounds them itself."""
    found = {name: scheme_on_cpu(Bundle.open(path)) for name, path in bundles.items()}
    assert found == {"fp32": None, "fp8": None, "int8": None, "int4": "W4A8"}
