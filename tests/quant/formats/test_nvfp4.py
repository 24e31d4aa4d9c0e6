"""NVFP4: E2M1 against ml_dtypes, the two levels of scales against onnx's reference implementation."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kontext.quant.formats.nvfp4 import NVFP4  # noqa: E402


def test_rounding_is_ml_dtypes() -> None:
    """Every multiple of 1/64 up to 8, and the numbers next to the middles; both signs."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = torch.arange(-512, 513) / 64
    values = torch.cat((values, torch.nextafter(values, values + 1), torch.nextafter(values, values - 1)))
    expected = values.numpy().astype(ml_dtypes.float4_e2m1fn)
    assert np.array_equal(NVFP4.nearest(values).numpy(), expected.astype(np.float32))
    # A negative number that rounds to zero is a plain zero here.
    codes, theirs = NVFP4.indices(values).numpy(), expected.view(np.uint8)
    assert np.array_equal(codes, np.where(theirs == 8, 0, theirs))


def test_what_is_stored_is_what_onnx_reads() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    weight = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    packed, scale, whole = NVFP4.quantize(weight, torch.float32)
    node = onnx.helper.make_node
    types = onnx.TensorProto

    def tensor(name: str, kind: int, shape: list[int], data: torch.Tensor) -> object:
        raw = data.contiguous().view(torch.uint8).numpy().tobytes()
        return onnx.helper.make_tensor(name, kind, shape, raw, raw=True)

    graph = onnx.helper.make_graph(
        [
            node("DequantizeLinear", ["scale", "whole"], ["steps"]),
            node("DequantizeLinear", ["values", "steps"], ["w"], axis=0, block_size=16),
        ],
        "nvfp4",
        [],
        [onnx.helper.make_tensor_value_info("w", types.FLOAT, [48, 6])],
        [
            tensor("values", types.FLOAT4E2M1, [48, 6], packed),
            tensor("scale", types.FLOAT8E4M3FN, [3, 6], scale),
            onnx.numpy_helper.from_array(whole.numpy(), "whole"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    onnx.checker.check_model(model, full_check=True)
    restored = ReferenceEvaluator(model).run(None, {})[0]
    np.testing.assert_allclose(restored, NVFP4.dequantize(packed, scale, whole).numpy(), rtol=1e-6)


def test_error_of_normal_weights() -> None:
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(2))
    error = (NVFP4.dequantize(*NVFP4.quantize(weight, torch.float32)) - weight).norm() / weight.norm()
    assert 0.07 < error < 0.095


def test_what_it_can_hold_it_holds_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.tensor(NVFP4.codes[:8])[torch.randint(0, 7, (64, 4), generator=generator)]
    weight = weight * (torch.randint(0, 2, (64, 4), generator=generator) * 2 - 1)
    weight[::16] = 4  # drawn to 4, the scale is 448 exactly
    assert torch.equal(NVFP4.dequantize(*NVFP4.quantize(weight, torch.float32)), weight)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(exponent=st.integers(-30, 34), outlier=st.sampled_from([1.0, 1e3]), seed=st.integers(0, 9))
def test_no_extreme_breaks_it(exponent: int, outlier: float, seed: int) -> None:
    weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    weight[5, 1] *= outlier
    weight[16:32, 2] = 0
    restored = NVFP4.dequantize(*NVFP4.quantize(weight, torch.float32))
    assert torch.isfinite(restored).all()
    assert (restored[16:32, 2] == 0).all()
    top = weight.abs().max()
    assert ((restored - weight).abs().max() / top) < 0.26


@pytest.mark.parametrize("shape", [(8, 2), (17, 2), (16, 3), (16,)])
def test_blocks_must_be_whole(shape: tuple[int, ...]) -> None:
    assert not NVFP4.fits(shape)
    with pytest.raises(ValueError, match="in a multiple of 16 and out of 2"):
        NVFP4.quantize(torch.zeros(shape), torch.float32)


def test_block_scales_are_near_the_best_of_an_exhaustive_search() -> None:
    """Within 14 % of the least squared error of every E4M3 scale in fp64; drawing the largest to 6 is 35 % above it."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(7))
    values, scale, whole = NVFP4.quantize(weight, torch.float32)
    table = torch.tensor(NVFP4.codes, dtype=torch.float64)

    def errors(scale: torch.Tensor) -> torch.Tensor:
        step = scale.double() * whole.double()
        rounded = table[((weight / step)[..., None] - table).abs().argmin(-1)] * step
        return (rounded - weight).square().sum(0)

    tried = [errors(code) for code in torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn)]
    error = (NVFP4.dequantize(values, scale, whole).double() - weight).square().sum(0)
    assert error.sum() < 1.14 * torch.stack(tried).amin(0).sum()
    plain = (weight.abs().amax(0) / (6 * whole)).to(torch.float8_e4m3fn)
    assert (error <= errors(plain) * 1.0001).all()


def test_scales_do_not_underflow() -> None:
    """A block far below the largest keeps what the smallest scale can tell apart; less than half of that is 0."""
    weight = torch.zeros(48, 2)
    weight[0] = 448.0 * 4  # of which the scale of all is 1
    weight[16:32] = 2.0**-9 * torch.tensor([0.2, 1.0, -1.4] + [0.0] * 13)[:, None]
    values, scale, whole = NVFP4.quantize(weight, torch.float32)
    assert scale.float()[:, 0].tolist() == [448.0, 2.0**-9, 2.0**-9]
    restored = NVFP4.dequantize(values, scale, whole)
    assert (restored[16:19, 0] * 2**9).tolist() == [0.0, 1.0, -1.5]
