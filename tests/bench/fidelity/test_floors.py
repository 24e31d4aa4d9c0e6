"""Floors: rounding one part alone, beside numpy's and the bundle's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from kontext.bench.fidelity.bits_per_weight import headers
from kontext.bench.fidelity.floors import INPUTS, WEIGHTS, change_graph, floor, rounded_layers
from kontext.quant.quantize import dequantize_weight
from kontext.quant.recipe import Layer
from kontext.runtime.bundle import Bundle


class Stored:
    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def read(self) -> torch.Tensor:
        return self.value


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.fixture
def linear(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A graph of one product, its weight [8, 4] and inputs [5, 8]."""
    random = np.random.default_rng(0)
    weight, x = (random.normal(size=size).astype(np.float32) for size in ((8, 4), (5, 8)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path, weight, x


def test_static_inputs_are_rounded_about_their_mean(linear: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """E4M3 by PyTorch's own cast."""
    path, weight, x = linear
    mean, scale = torch.linspace(-1, 1, 8), torch.tensor(0.01)
    stored = {"w_input_mean": Stored(mean), "w_input_scale": Stored(scale)}
    change_graph(path, {"w": Layer("fp8", activations="fp8", centred=True)}, stored, INPUTS)
    codes = ((torch.from_numpy(x) - mean) / scale).to(torch.float8_e4m3fn)
    expected = (codes.float() * scale + mean).numpy() @ weight
    np.testing.assert_allclose(run(path, x), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - x @ weight).max() > 1e-3


def test_inputs_are_rounded_by_token(linear: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, weight, x = linear
    change_graph(path, {"w": Layer("int8", activations="int8")}, {}, INPUTS)
    largest = np.abs(x).max(1, keepdims=True)
    low, high = min((x / largest).min(), 0), max((x / largest).max(), 0)
    step = (high - low) / 255
    zero = np.round(-low / step)
    codes = np.clip(np.round(x / largest / step) + zero, 0, 255)
    np.testing.assert_allclose(run(path, x), (codes - zero) * step * largest @ weight, rtol=1e-5, atol=1e-5)


def test_inputs_are_rounded_by_block(tmp_path: Path) -> None:
    """With numpy's arithmetic and ml_dtypes' casts."""
    random = np.random.default_rng(0)
    weight, x = (random.normal(size=size).astype(np.float32) for size in ((32, 4), (5, 32)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    scale = np.float32(2.0**-9)
    layer = Layer("nvfp4", activations="nvfp4")
    change_graph(path, {"w": layer}, {"w_input_scale": Stored(torch.tensor(scale))}, INPUTS)
    blocks = x.reshape(5, 2, 16)
    steps = (np.abs(blocks).max(-1, keepdims=True) / (6 * scale)).astype(ml_dtypes.float8_e4m3fn)
    steps = steps.astype(np.float32) * scale
    rounded = (blocks / steps).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * steps
    np.testing.assert_allclose(run(path, x), rounded.reshape(5, 32) @ weight, rtol=1e-5, atol=1e-5)


def test_weights_alone_keep_the_means_own_product(linear: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, weight, x = linear
    mean, output = torch.linspace(-1, 1, 8), torch.arange(4.0)
    stored = {"w_input_mean": Stored(mean), "w_mean_output": Stored(output)}
    change_graph(path, {"w": Layer("fp8", activations="fp8", centred=True)}, stored, WEIGHTS)
    np.testing.assert_allclose(
        run(path, x), (x - mean.numpy()) @ weight + output.numpy(), rtol=1e-5, atol=1e-5
    )


def test_weights_alone_are_the_bundles(bundles: dict[str, Path]) -> None:
    reference, bundle = Bundle.open(bundles["fp32"]), Bundle.open(bundles["int8"])
    layers = rounded_layers(bundle)["transformer"]
    name = next(iter(layers))
    with floor(reference, bundle, WEIGHTS, rounded_layers(bundle)) as changed:
        changed.verify()
        found = headers(changed)["transformer"].tensors[name].read().float()
    stored = headers(bundle)["transformer"].tensors
    expected = dequantize_weight([stored[name].read(), stored[f"{name}_scale"].read()], layers[name])
    assert torch.equal(found, expected)
