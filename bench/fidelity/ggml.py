"""ggml's quantizers, called in its own library: the formats of llama.cpp and stable-diffusion.cpp that the gguf package
reads and does not write.

The environment variable GGML_LIBRARY says where `libggml-base.so` is; npm's @node-llama-cpp/linux-x64 contains one.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from ...errors import KontextError
from .peer_quantizers import QuantizedWeight, Quantizer

VARIABLE = "GGML_LIBRARY"

INSTEAD = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""What llama.cpp's quantizer takes where rows are no multiple of a format's block of 256 (`tensor_type_fallback`)."""

HALF = "F16"
"""What it takes where rows are no multiple of 32 either."""


def why_missing() -> str | None:
    """Why there is no library, in words; None if there is one."""
    path = os.environ.get(VARIABLE)
    if not path:
        return f"ggml's library: set {VARIABLE} to a libggml-base.so (npm pack @node-llama-cpp/linux-x64 has one)"
    if not Path(path).is_file():
        return f"ggml's library: {VARIABLE}={path} is no file"
    try:
        library(path)
    except (OSError, AttributeError) as fault:
        return f"ggml's library: {path} cannot be used: {fault}"
    return None


@functools.cache
def library(path: str) -> ctypes.CDLL:
    """ggml-base. Raises OSError for a file that is no library, AttributeError for another one."""
    found = ctypes.CDLL(str(Path(path).resolve()))
    # size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix)
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    found.ggml_version.restype = ctypes.c_char_p
    return found


def loaded() -> ctypes.CDLL:
    """Raises KontextError if there is no library."""
    if (missing := why_missing()) is not None:
        raise KontextError(f"this needs {missing}")
    return library(os.environ[VARIABLE])


def version() -> str:
    found: bytes = loaded().ggml_version()
    return found.decode()


def nominal_bits(form: str) -> int:
    """Q5_0 has 5 and IQ4_NL 4: what its name says."""
    return int("".join(each for each in form.partition("_")[0] if each.isdigit()))


def form_for(kind: str, width: int) -> str:
    """The format that rows of `width` weights get where `kind` was asked for."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for form in (kind, INSTEAD.get(kind, HALF)):
        if width % GGML_QUANT_SIZES[GGMLQuantizationType[form]][0] == 0:
            return form
    return HALF


def quantize_rows(form: str, rows: Tensor, importance: Tensor | None = None) -> bytearray:
    """The bytes that ggml stores for fp32 `rows` [rows, width]; `importance` [width] weighs errors by columns."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    rows = rows.float().contiguous()
    count, width = rows.shape
    kind = GGMLQuantizationType[form]
    block, size = GGML_QUANT_SIZES[kind]
    stored = bytearray(count * width // block * size)
    weights = None if importance is None else importance.float().contiguous()
    written = loaded().ggml_quantize_chunk(
        int(kind),
        rows.data_ptr(),
        (ctypes.c_char * len(stored)).from_buffer(stored),
        0,
        count,
        width,
        None if weights is None else weights.data_ptr(),
    )
    if written != len(stored):
        raise KontextError(f"ggml wrote {written} bytes of {form} and not {len(stored)}")
    return stored


def dequantize_rows(form: str, stored: bytes | bytearray, shape: torch.Size) -> Tensor:
    """fp32 of `shape`, by the gguf package."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    values = quants.dequantize(
        np.frombuffer(stored, np.uint8).reshape(shape[0], -1), GGMLQuantizationType[form]
    )
    return torch.from_numpy(values).reshape(shape)


def ggml(kind: str, importance: Tensor | None = None) -> Quantizer:
    """A format of ggml's, or what llama.cpp takes instead where it does not fit; `importance` as in `quantize_rows`."""

    def quantize(weight: Tensor) -> QuantizedWeight:
        form = form_for(kind, weight.shape[1])
        if form == HALF:
            return QuantizedWeight(weight.half().float(), 16 * weight.numel(), form)
        stored = quantize_rows(form, weight, importance)
        return QuantizedWeight(dequantize_rows(form, stored, weight.shape), 8 * len(stored), form)

    return quantize
