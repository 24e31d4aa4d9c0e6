"""INT4 in groups: the bytes against ml_dtypes and ONNX, the error against what four bits can give."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kontext.quant.formats import grouped  # noqa: E402
from kontext.quant.formats.int4 import INT4  # noqa: E402

ALL = torch.arange(-8, 8, dtype=torch.int8)


def test_bytes_are_ml_dtypes_and_onnx() -> None:
    """Every pair of values; ONNX packs the first into the low half."""
    helper = pytest.importorskip("onnx.numpy_helper")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = torch.cartesian_prod(ALL, ALL)
    packed = INT4.pack(values)
    assert torch.equal(INT4.integers(packed), values)
    tensor = helper.from_array(values.numpy().astype(ml_dtypes.int4), "t")
    assert tensor.raw_data == packed.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_of_normal_weights(dtype: torch.dtype) -> None:
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(1))
    packed, scales = INT4.quantize(weight, dtype)
    assert packed.shape == (512, 32)
    assert scales.shape == (8, 64)
    assert scales.dtype == dtype
    error = float((INT4.dequantize(packed, scales.float()) - weight).norm() / weight.norm())
    assert 0.08 < error < 0.105
    # The search is worth it: the plain scale, which just reaches the largest weight, does worse.
    amax = weight.unflatten(0, (-1, 64)).abs().amax(1) / 7
    plain = (weight.unflatten(0, (-1, 64)) / amax[:, None]).round() * amax[:, None]
    assert error < float((plain.flatten(0, 1) - weight).norm() / weight.norm())


def test_what_it_can_hold_it_holds_exactly() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(-7, 8, (128, 6), generator=generator)
    values[::64] = 7  # so that every group's scale is plain
    weight = values * torch.tensor([1.0, 2, 0.5, 4, 8, 0.25])
    assert torch.equal(INT4.dequantize(*INT4.quantize(weight, torch.float32)), weight)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    exponent=st.integers(-44, 37),
    outlier=st.sampled_from([0.0, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    rows=st.sampled_from([64, 192]),
)
def test_no_extreme_breaks_it(exponent: int, outlier: float, dtype: torch.dtype, rows: int) -> None:
    weight = torch.randn(rows, 4, generator=torch.Generator().manual_seed(3)) * 10.0**exponent
    weight[0] += outlier * 10.0**exponent
    weight[:, 1] = 0
    top = torch.finfo(dtype).max
    weight.clamp_(-top, top)
    packed, scales = INT4.quantize(weight, dtype)
    result = INT4.dequantize(packed, scales.float())
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()
    assert (result[:, 1] == 0).all()
    if 10.0**exponent > 1e3 * torch.finfo(dtype).tiny:
        groups = weight.unflatten(0, (-1, 64)).abs().amax(1).repeat_interleave(64, 0)
        assert ((result - weight).abs() <= 0.31 * groups + 1e-30).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_scales_are_the_best_for_their_integers(transposed: bool) -> None:
    """Oracle: least squares in fp64. Whatever order the weight has in memory: checkpoints have it transposed."""
    weight = torch.randn(128, 30, generator=torch.Generator().manual_seed(8))
    packed, scales = INT4.quantize(weight.t().contiguous().t() if transposed else weight, torch.float32)
    torch.testing.assert_close(scales, INT4.quantize(weight, torch.float32)[1])
    groups = weight.double().unflatten(0, (-1, 64))
    integers = INT4.integers(packed).double().unflatten(0, (-1, 64))
    best = (integers * groups).sum(1) / integers.square().sum(1)
    ours, least = ((integers * each[:, None] - groups).square().sum() for each in (scales.double(), best))
    # The integers are rounded once more with the fitted scale, so it is the best for slightly different ones.
    assert least <= ours <= 1.01 * least


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(128, 10)
    whole = INT4.quantize(weight, torch.float16)
    monkeypatch.setattr(grouped, "BLOCK", 4 * 64)
    parts = INT4.quantize(weight, torch.float16)
    assert all(torch.equal(first, second) for first, second in zip(whole, parts, strict=True))


@pytest.mark.parametrize("shape", [(63, 4), (64, 3), (64,), (2, 64, 4)])
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    assert not INT4.fits(shape)
    with pytest.raises(ValueError, match="in a multiple of 64 and out of 2"):
        INT4.quantize(torch.ones(shape), torch.float32)


def test_onnxruntime_dequantizes_the_same() -> None:
    """DequantizeLinear over our bytes, and the MatMul that it fuses into, at full accuracy."""
    onnx = pytest.importorskip("onnx")
    import onnxruntime

    weight = torch.randn(128, 32, generator=torch.Generator().manual_seed(4))
    packed, scales = INT4.quantize(weight, torch.float32)
    make = onnx.helper
    initializers = [
        make.make_tensor("w", onnx.TensorProto.INT4, [128, 32], packed.numpy().tobytes(), raw=True),
        onnx.numpy_helper.from_array(scales.numpy(), "s"),
    ]
    nodes = [
        make.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=64),
        make.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    value = make.make_tensor_value_info
    graph = make.make_graph(nodes, "g", [value("x", 1, ["n", 128])], [value("y", 1, ["n", 32])], initializers)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 23)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(5).standard_normal((3, 128), np.float32)
    expected = x @ INT4.dequantize(packed, scales).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=0, atol=2e-4)


def test_the_scale_is_nearly_the_best_of_an_exhaustive_search() -> None:
    """Within 2 % of the least squared error of 91 scales in fp64; the plain scale is 30 % above it."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(7))
    largest = weight.abs().amax(0).double()

    def errors(scale: torch.Tensor) -> torch.Tensor:
        return ((weight / scale).round().clamp(-8, 7) * scale - weight).square().sum(0)

    tried = torch.stack([errors(largest * percent / 700) for percent in np.linspace(60, 105, 91)])
    restored = INT4.dequantize(*INT4.quantize(weight, torch.float32))
    error = (restored.double() - weight).square().sum(0)
    assert error.sum() < 1.02 * tried.amin(0).sum()
    assert (error <= errors(largest / 7) * 1.0001).all()
