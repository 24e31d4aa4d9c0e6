"""E4M3 weights: one byte each, 4 exponent and 3 mantissa bits, largest value 448, with one scale per output
channel.

OCP 8-bit Floating Point Specification (2023), the `e4m3fn` of PyTorch, ml_dtypes and ONNX: no infinity, two
NaNs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

E4M3_MAX = 448.0


def decode(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The values of E4M3 bytes: (-1)^s * 2^(e-7) * (1 + m/8), or (-1)^s * 2^-6 * m/8 where e is 0; 0x7f and
    0xff are NaN."""
    exponent, mantissa = (codes >> 3) & 15, (codes & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissa / 8, exponent.astype(np.int32) - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    value = np.where((codes & 0x7F) == 0x7F, np.float32(np.nan), value)
    return np.where(codes & 0x80, -value, value).astype(np.float32)


def encode(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The nearest E4M3 byte of every fp32 value, ties to even; beyond 448 it saturates, NaN stays NaN."""
    magnitude = np.minimum(np.abs(values), np.float32(E4M3_MAX))
    _, exponent = np.frexp(magnitude)
    # Below 2^-6 the spacing stays at 2^-9; frexp calls zero's exponent 0.
    exponent = np.where(magnitude == 0, -6, np.maximum(exponent - 1, -6))
    steps = np.rint(
        np.ldexp(magnitude, 3 - exponent)
    )  # in units of the last mantissa bit, 8 to 16 where normal
    # 16 steps carry into the next exponent by themselves, and so do 8 of the subnormals.
    steps = np.where(np.isnan(values), 0, steps).astype(np.int32)
    codes = np.where(np.isnan(values), 0x7F, ((exponent + 6) << 3) + steps)
    return (codes | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def channel_scales(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """amax / 448 of every column of `weight` [in, out], as `dtype` [out]; 1 for columns of zeros.

    Rounded up to a normal number of `dtype` where it would be less: a scale that underflows would turn
    weights to NaN.
    """
    largest = weight.abs().amax(dim=0).float()
    scale = (largest / E4M3_MAX).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def fits(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2


def layout(shape: tuple[int, int]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [("", "F8_E4M3", shape), ("_scale", "wide", shape[1:])]


def scales(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
    return (channel_scales(weight, dtype),)


def step(scale: Tensor) -> Tensor:
    return scale.float()[None]


def offset(_scale: Tensor) -> None:
    return None


def nearest(units: Tensor, _offset: Tensor | None = None) -> Tensor:
    return pack(units).float()


def pack(units: Tensor, *_scales: Tensor) -> Tensor:
    return units.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`weight` [in, out] as E4M3 and its scales [out]: weight ≈ values * scales.

    The division is by the scale as it is stored, so rounding it to 16 bits costs range and not accuracy.
    """
    scale = channel_scales(weight, scale_dtype)
    return pack(weight.float() / scale.float()), scale


def quantize_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` as E4M3 with one fp32 scale [] for all of it."""
    scale = (x.abs().amax().float() / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return pack(x.float() / scale), scale


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` [..., channels] as E4M3 with an fp32 scale for each token, [..., 1]: what a dynamic kernel computes."""
    scale = (x.abs().amax(-1, keepdim=True).float() / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return pack(x.float() / scale), scale


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """What the graph's DequantizeLinear computes, in the scale's format."""
    return values.to(scale.dtype) * scale
