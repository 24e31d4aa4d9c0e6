"""Number formats of the kernels in PyTorch and inside kernels: scales per token, E4M3 and INT8 codes; and GELU.

E4M3 saturates at 448 and INT8 is symmetric, so a scale is amax / 448 or amax / 127. Codes round to nearest, ties to
even. Residual streams in fp16 saturate at 65504.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch import jit, tl

LIMITS = {"fp8": 448.0, "int8": 127.0}
"""The largest code of each format."""

CODES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""The formats that activations can be quantized to with a scale for each token; `blocks` has NVFP4."""

FP16_MAX = 65504.0
"""The largest finite number in fp16."""

MIN_AMAX = 1e-12
"""Amax of a row of zeros, so that no scale is zero."""


def encode(values: Tensor, format: str) -> Tensor:
    """Codes of fp32 values that are already divided by their scale."""
    limit = LIMITS[format]
    values = values.clamp(-limit, limit)
    return (values.round() if format == "int8" else values).to(CODES[format])


def quantize_rows(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """fp32 x [..., width] → codes of the same shape and fp32 scales [...]: x ≈ codes * scales."""
    scale = x.abs().amax(-1).clamp(min=MIN_AMAX) / LIMITS[format]
    return encode(x / scale[..., None], format), scale


def residual_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """fp32 x + gate * y of x and y [batch, tokens, width] and gate [batch, width].

    Clipped to ±65504 if x is in fp16, as in `model.transformer.within_fp16`; NaN stays NaN.
    """
    total = x.float() + gate.float()[:, None] * y.float()
    return total.clamp(-FP16_MAX, FP16_MAX) if x.dtype == torch.float16 else total


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# -- the same inside kernels --


@jit()
def quantize_tile(values, step, INTEGER: tl.constexpr, LIMIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes of fp32 `values` with scale `step`: INT8 if INTEGER, otherwise E4M3, up to LIMIT."""
    values = tl.minimum(tl.maximum(values / step, -LIMIT), LIMIT)
    if INTEGER:  # adding 1.5 * 2^23 rounds: fp32 numbers of that size have no bits below one
        return ((values + 12582912.0) - 12582912.0).to(tl.int8)
    else:
        return values.to(tl.float8e4nv)


@jit()
def gelu_tile(x):  # type: ignore[no-untyped-def]
    """x * sigmoid(2u) = x / 2 * (1 + tanh u) with u = sqrt(2 / pi) * (x + 0.044715 x^3)."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp2(u * -2.8853900817779268))


@jit()
def clip_to_fp16(values, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 `values` of a residual stream, clipped to ±65504 if it is stored as fp16 (`dtype`). NaN stays NaN."""
    if dtype == tl.float16:
        return tl.clamp(values, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        return values


@jit()
def float_tile(values):  # type: ignore[no-untyped-def]
    """fp32 of INT8 or floats; E4M3 comes as uint8, since GPUs before Ada lack the type."""
    if values.dtype == tl.uint8:  # E4M3's bits as fp16 have an exponent that is 8 too small
        bits = values.to(tl.int16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        number = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), number)
    return values.to(tl.float32)
