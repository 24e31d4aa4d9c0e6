"""Linears as they are deployed, against the same in float64 by hand."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kontext.quant.quantize import quantize_weight  # noqa: E402
from kontext.quant.quantized_product import QuantizedProduct  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402
from kontext.quant.weight_layout import weight_layout  # noqa: E402

SHAPE = (128, 96)


def parts(layer: Layer) -> tuple[QuantizedProduct, dict[str, np.ndarray], np.ndarray]:
    """A product, its tensors by suffix and its inputs in float64."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, SHAPE[0], generator=generator) + 0.5, torch.randn(*SHAPE, generator=generator)
    statistics = InputStatistics.empty(SHAPE[0])
    statistics.add(x, 0)
    tensors = quantize_weight(weight, layer, torch.float32, statistics)
    found = {
        each.suffix: tensor.double().numpy()
        for each, tensor in zip(weight_layout(layer, SHAPE), tensors, strict=True)
    }
    return QuantizedProduct(tensors, layer, SHAPE), found, x.double().numpy()


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_static_inputs_in_int8(format: str, rank: int) -> None:
    product, found, x = parts(Layer(format, rank, "int8", True, "static", True))
    changed = (x - found["_input_mean"]) * found["_input_factor"]
    rounded = np.clip(np.rint(changed / found["_input_scale"]), -127, 127) * found["_input_scale"]
    weight = product.weight.double().numpy()
    if format == "int8":
        assert weight == pytest.approx(found[""] * found["_scale"], rel=1e-6)
    expected = rounded @ weight + found["_mean_output"]
    if rank:
        expected = expected + changed @ found["_down"] @ found["_up"]
    y = product(torch.from_numpy(x).float()).double().numpy()
    assert (
        np.linalg.norm(y - expected) / np.linalg.norm(expected) < 1e-3
    )  # a value between two codes may take either


def test_unpacked_weights_are_codes_of_8_bits() -> None:
    product, found, _ = parts(Layer("int4", 0, "int8", True, "static", True))
    codes = product.weight.double().numpy() / found["_column_scale"]
    assert codes == pytest.approx(np.rint(codes), abs=1e-4)
    assert np.abs(codes).max() == pytest.approx(127)


@pytest.mark.parametrize(
    ("layer", "decibels"),
    [
        (Layer("int8"), 35),
        (Layer("int8", 0, "int8", True), 35),
        (Layer("fp8", 0, "fp8", True), 26),
        (Layer("int4", 0, "fp8", True), 17),
        (Layer("nvfp4", 0, "nvfp4", True), 15),
    ],
    ids=str,
)
def test_every_way_of_rounding_is_near_the_linear(layer: Layer, decibels: float) -> None:
    product, _, x = parts(layer)
    weight = torch.randn(40, SHAPE[0], generator=(generator := torch.Generator().manual_seed(0)))
    expected = torch.from_numpy(x) @ torch.randn(*SHAPE, generator=generator).double()
    assert weight.shape == x.shape
    error = product(torch.from_numpy(x).float()).double() - expected
    assert -10 * torch.log10(error.square().sum() / expected.square().sum()) > decibels
