"""From a weight to its stored tensors: what each method gains, and that it is what the graph computes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from kontext.quant.formats import COMPUTE, FORMATS  # noqa: E402
from kontext.quant.quantize import dequantize_weight, quantize_weight  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402
from kontext.quant.weight_layout import weight_layout  # noqa: E402

WIDTH = 128


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_inputs() -> Tensor:
    """Correlated, with a few channels that are much larger, as a transformer's are."""
    inputs = noise(1500, 24) @ noise(24, WIDTH, seed=1) + 0.2 * noise(1500, WIDTH, seed=2)
    inputs[:, :4] *= 20
    return inputs


def statistics(inputs: Tensor) -> InputStatistics:
    result = InputStatistics.empty(WIDTH)
    result.add(inputs, 0)
    return result


def output_error(layer: Layer, inputs: Tensor, weight: Tensor, calibrated: bool) -> float:
    tensors = quantize_weight(weight, layer, torch.float32, statistics(inputs) if calibrated else None)
    return float((inputs @ (dequantize_weight(tensors, layer) - weight)).norm() / (inputs @ weight).norm())


@pytest.mark.parametrize("format", FORMATS)
def test_calibration_brings_the_output_closer(format: str) -> None:
    inputs, weight = layer_inputs(), noise(WIDTH, 64, seed=3)
    plain, calibrated = (output_error(Layer(format), inputs, weight, known) for known in (False, True))
    assert calibrated < 0.8 * plain


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_branch_brings_it_closer_still(calibrated: bool) -> None:
    weight = noise(WIDTH, 64, seed=3) + 3 * noise(WIDTH, 4, seed=4) @ noise(4, 64, seed=5)
    inputs = layer_inputs()
    without, beside = (output_error(Layer("int4", rank), inputs, weight, calibrated) for rank in (0, 16))
    assert beside < 0.7 * without


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("calibrated", [False, True])
def test_stored_tensors_are_the_layout(format: str, dtype: torch.dtype, calibrated: bool) -> None:
    known = statistics(layer_inputs()) if calibrated else None
    layer = Layer(format, 8, "fp8" if calibrated else "", centred=calibrated)
    tensors = quantize_weight(noise(WIDTH, 64), layer, dtype, known)
    names = {
        "F32": torch.float32,
        "F8_E4M3": torch.float8_e4m3fn,
        "U8": torch.uint8,
        "I8": torch.int8,
        COMPUTE: dtype,
    }
    expected = [(names[stored], shape) for _, stored, shape in weight_layout(layer, (WIDTH, 64))]
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors] == expected
    assert all(tensor.is_contiguous() for tensor in tensors)
    error = (dequantize_weight(tensors, layer) - noise(WIDTH, 64)).norm() / noise(WIDTH, 64).norm()
    assert error < 0.3


def test_centred_inputs_are_rounded_less() -> None:
    """Most of the inputs' energy is their mean, which E4M3 would round in proportion."""
    inputs, weight = noise(1500, WIDTH) + 2 * noise(WIDTH, seed=7), noise(WIDTH, 64, seed=3)
    errors = []
    for centred in (False, True):
        layer = Layer("fp8", 0, "fp8", centred)
        tensors = quantize_weight(weight, layer, torch.float32, statistics(inputs))
        found = {
            ending: tensor
            for (ending, *_), tensor in zip(weight_layout(layer, (WIDTH, 64)), tensors, strict=True)
        }
        mean = found.get("_input_mean", torch.zeros(WIDTH))
        units = (inputs - mean) / found["_input_scale"]
        rounded = units.clamp(-448, 448).to(torch.float8_e4m3fn).float() * found["_input_scale"]
        y = rounded @ dequantize_weight(tensors, layer) + found.get("_mean_output", torch.zeros(64))
        errors.append(float((y - inputs @ weight).norm()))
    assert errors[1] < 0.8 * errors[0]


def test_scaled_channels_need_fewer_bits() -> None:
    """A few channels are much larger, and one step for all rounds the rest away. Oracle: the output of the
    plain weight; what is stored is applied as docs/bundle.md says."""
    inputs, weight = layer_inputs() + 3, noise(WIDTH, 64, seed=3)
    errors = []
    for scaled in (False, True):
        layer = Layer("int8", 0, "int8", True, "static", scaled)
        tensors = quantize_weight(weight, layer, torch.float32, statistics(inputs))
        found = {
            ending: tensor
            for (ending, *_), tensor in zip(weight_layout(layer, (WIDTH, 64)), tensors, strict=True)
        }
        x = (inputs - found["_input_mean"]) * found.get("_input_factor", torch.ones(WIDTH))
        codes = (x / found["_input_scale"]).round().clamp(-128, 127)
        y = codes * found["_input_scale"] @ dequantize_weight(tensors, layer) + found["_mean_output"]
        errors.append(float((y - inputs @ weight).norm() / (inputs @ weight).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_static_scales_need_statistics() -> None:
    with pytest.raises(ValueError, match="need statistics"):
        quantize_weight(noise(64, 8), Layer("fp8", activations="fp8"), torch.float32)
    with pytest.raises(ValueError, match="centring needs statistics"):
        quantize_weight(noise(64, 8), Layer("int8", activations="int8", centred=True), torch.float32)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_weight_that_does_not_fit_is_refused(calibrated: bool) -> None:
    known = InputStatistics.empty(96)
    known.add(noise(200, 96), 0)
    with pytest.raises(ValueError, match=r"\[96, 8\] cannot be stored as int4: .* in a multiple of 64"):
        quantize_weight(noise(96, 8), Layer("int4"), torch.float32, known if calibrated else None)


def test_16_bit_scales_are_used_in_full_precision() -> None:
    """What is stored in 16 bits is what the weight stands for: products are not rounded to 16 bits a second time."""
    weight = noise(WIDTH, 64, seed=3)
    for dtype in (torch.float16, torch.bfloat16):
        layer = Layer("int4", 8)
        values, scale, down, up = quantize_weight(weight, layer, dtype)
        integers = FORMATS["int4"].integers(values).double()
        expected = integers * scale.double().repeat_interleave(64, 0) + down.double() @ up.double()
        torch.testing.assert_close(
            dequantize_weight((values, scale, down, up), layer).double(), expected, rtol=1e-5, atol=1e-5
        )
