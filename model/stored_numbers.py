"""Numbers of tensors from their stored bytes, without PyTorch: alphas of LoRAs, and whether a tensor is all zeros."""

from __future__ import annotations

import math
import struct

from ..safetensors_header import BITS
from .safetensors_file import TensorInfo

CODES = {
    "F64": "d",
    "F32": "f",
    "F16": "e",
    "I64": "q",
    "I32": "i",
    "I16": "h",
    "I8": "b",
    "U8": "B",
    "BOOL": "?",
}
"""Number formats that struct knows."""


def read_numbers(info: TensorInfo) -> list[float]:
    """The numbers of a tensor, whole ones as int.

    Raises:
        KontextError: it cannot be read.
    """
    data = info.read_bytes()
    if info.dtype == "BF16":  # the upper half of an F32
        return [struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(0, len(data), 2)]
    if info.dtype == "F8_E5M2":  # the upper half of an F16
        return [struct.unpack("<e", bytes((0, code)))[0] for code in data]
    if info.dtype == "F8_E4M3":
        return [e4m3(code) for code in data]
    if info.dtype == "F8_E8M0":
        return [math.nan if code == 255 else math.ldexp(1, code - 127) for code in data]
    return list(struct.unpack(f"<{math.prod(info.shape)}{CODES[info.dtype]}", data))


def e4m3(code: int) -> float:
    """The number of an E4M3 code: no infinities, one NaN of each sign."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    size = math.ldexp(mantissa + (8 if exponent else 0), max(exponent, 1) - 10)
    return -size if code >> 7 else size


def is_zero(info: TensorInfo) -> bool:
    """Whether a tensor holds nothing but zeros, of either sign.

    Raises:
        KontextError: it cannot be read.
    """
    if info.dtype == "F8_E8M0":  # it has no zero
        return not math.prod(info.shape)
    data, size = info.read_bytes(), BITS[info.dtype] // 8
    signs = b"\0\x80" if info.dtype.startswith(("F", "BF")) else b"\0"
    return all(not data[place::size].strip(signs if place == size - 1 else b"\0") for place in range(size))
