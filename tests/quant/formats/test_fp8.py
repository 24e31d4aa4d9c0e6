"""E4M3 against ml_dtypes' own cast, bit for bit, and the properties of channel scales."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kontext.quant.formats.fp8 import FP8  # noqa: E402


def test_pack_is_the_cast_of_ml_dtypes() -> None:
    """Of every fp16 value: 448's neighbourhood, subnormals and all ties of E4M3 are among them."""
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    codes = FP8.pack(torch.from_numpy(values)).view(torch.uint8).numpy()
    within = np.abs(values) <= FP8.largest
    expected = values[within].astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(codes[within], expected)


def test_pack_saturates_and_keeps_nan() -> None:
    packed = FP8.pack(torch.tensor([449, -1e30, np.inf, -np.inf, np.nan])).float().numpy()
    np.testing.assert_array_equal(packed, np.array([448, -448, 448, -448, np.nan], dtype=np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 192), (123, 7)])
def test_quantize(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[:, 0] = 0
    values, scale = FP8.quantize(weight, dtype)
    assert (values.dtype, values.shape, scale.dtype, scale.shape) == (
        torch.float8_e4m3fn,
        weight.shape,
        dtype,
        weight.shape[1:],
    )
    assert scale[0] == 1
    restored = FP8.dequantize(values, scale).float()
    assert torch.equal(restored[:, 0], weight[:, 0])
    # Half a step is 1/16 of a value; small values have steps of 2^-9 scales. Rounding the product to `dtype`
    # adds its own.
    tolerance = weight.abs() / 16 + scale.float() * 2.0**-10 + weight.abs() * torch.finfo(dtype).eps
    # A scale rounded down to 16 bits lets the largest weights saturate, by less than the rounding.
    assert ((restored - weight).abs() <= tolerance * 1.0001).all()


def test_scale_is_amax_over_448() -> None:
    weight = torch.tensor([[0.0, 2.0, -896.0], [0.0, -4.0, 1.0]])
    (scale,) = FP8.scales(weight, torch.float32)
    assert torch.equal(scale, torch.tensor([1.0, 4 / 448, 2.0]))


@settings(deadline=None)
@given(
    st.floats(min_value=2.0**-149, max_value=2.0**127, width=32),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_magnitude_turns_to_nan(amax: float, dtype: torch.dtype) -> None:
    values, scale = FP8.quantize(torch.tensor([[amax], [-amax], [0.0]]), dtype)
    assert torch.isfinite(values.float()).all()
    assert scale.isfinite().all()
    assert (scale > 0).all()


def test_tiny_weights_do_not_underflow_a_half_scale() -> None:
    values, scale = FP8.quantize(torch.tensor([[1e-6, 1.0], [-5e-7, 2.0]]), torch.float16)
    assert (scale > 0).all()
    assert torch.isfinite(values.float()).all()


def test_quantize_is_idempotent() -> None:
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    first = FP8.quantize(weight, torch.float32)
    again = FP8.quantize(FP8.dequantize(*first), torch.float32)
    torch.testing.assert_close(again[1], first[1], rtol=1e-6, atol=0)
    restored = FP8.dequantize(*first)
    torch.testing.assert_close(FP8.dequantize(*again), restored, rtol=1e-6, atol=0)
