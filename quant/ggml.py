"""ggml's number formats, those of GGUF files, llama.cpp and stable-diffusion.cpp: blocks of a matrix's rows, as bytes.

The gguf package writes some of them (`PACKAGE`), and only ggml's own library the others (`LIBRARY`). The environment
variable GGML_LIBRARY says where its `libggml-base.so` is; npm's @node-llama-cpp/linux-x64 contains one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KontextError
from ..model.gguf_file import KINDS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VARIABLE = "GGML_LIBRARY"

PACKAGE = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""The gguf package writes them; of the quantized ones, the same bytes as the library does."""

LIBRARY = ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS")
"""Only ggml's library writes them."""

UNWEIGHED = ("F32", "F16", "BF16", "Q8_0")
"""Formats whose rounding takes no importance."""

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

PIECES = 8
"""Parts of a matrix's rows for each thread, so that threads end together."""


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
    file = Path(path).resolve()
    if is_truncated(file):
        raise OSError("it is truncated")
    found = ctypes.CDLL(str(file))
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


def is_truncated(path: Path) -> bool:
    """Whether an ELF file ends before its table of sections, the last part of it: the system would map what is missing
    and end this process with SIGBUS."""
    with path.open("rb") as file:
        header = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return False
    (sections,) = struct.unpack_from("<Q", header, 40)
    entry, count = struct.unpack_from("<HH", header, 58)
    return size < int(sections) + entry * count


def loaded() -> ctypes.CDLL:
    """Raises KontextError if there is no library."""
    if (missing := why_missing()) is not None:
        raise KontextError(f"this needs {missing}")
    return library(os.environ[VARIABLE])


def version() -> str:
    found: bytes = loaded().ggml_version()
    return found.decode()


def form_for(kind: str, width: int) -> str:
    """The format that rows of `width` weights get where `kind` was asked for."""
    return next((form for form in (kind, INSTEAD.get(kind, HALF)) if width % KINDS[form][1] == 0), HALF)


def stored_bytes(form: str, weights: int) -> int:
    """Of `weights` numbers, whole blocks."""
    _, block, size = KINDS[form]
    return weights // block * size


def encode_rows(form: str, rows: Tensor, importance: Tensor | None = None) -> Tensor:
    """The bytes that a GGUF file holds for `rows` [rows, width], whole blocks of `form`, as uint8 [bytes].

    The library writes what the package does not, and whatever is weighed by `importance` (`quantize_rows`).

    Raises:
        KontextError: a number is beyond fp16, in which F16 stores it, and the others their blocks' scales; or the
            library is needed and missing.
    """
    import torch

    if form not in ("F32", "BF16") and (largest := float(rows.abs().amax())) > torch.finfo(torch.float16).max:
        raise KontextError(
            f"{largest:.3g} does not fit into {form}, which needs fp16's range: take BF16 or F32"
        )
    if form in ("F32", "F16", "BF16"):
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[form]
        return rows.to(dtype).contiguous().reshape(-1).view(torch.uint8)
    if form in LIBRARY or importance is not None:
        return quantize_rows(form, rows, importance)
    from gguf import GGMLQuantizationType, quants

    stored = quants.quantize(rows.float().contiguous().numpy(), GGMLQuantizationType[form])
    return torch.from_numpy(stored.reshape(-1))


def quantize_rows(form: str, rows: Tensor, importance: Tensor | None = None) -> Tensor:
    """The bytes that ggml's library stores for `rows` [rows, width], as uint8 [bytes], on all of PyTorch's threads;
    `importance` [width] weighs errors by columns."""
    import torch

    rows = rows.float().contiguous()
    count, width = rows.shape
    stored = torch.empty(stored_bytes(form, count * width), dtype=torch.uint8)
    weights = None if importance is None else importance.float().contiguous()
    found, number = loaded(), KINDS[form][0]
    threads = torch.get_num_threads()
    step = max(1, -(-count // (PIECES * threads)))

    def quantize(first: int) -> int:
        written: int = found.ggml_quantize_chunk(
            number,
            rows.data_ptr(),
            stored.data_ptr(),
            first * width,
            min(step, count - first),
            width,
            None if weights is None else weights.data_ptr(),
        )
        return written

    with ThreadPoolExecutor(threads) as pool:
        written = sum(pool.map(quantize, range(0, count, step)))
    if written != len(stored):
        raise KontextError(f"ggml wrote {written} bytes of {form} and not {len(stored)}")
    return stored


def dequantize_rows(form: str, stored: Tensor, shape: torch.Size) -> Tensor:
    """fp32 of `shape`, by the gguf package."""
    import torch
    from gguf import GGMLQuantizationType, quants

    values = quants.dequantize(stored.numpy().reshape(shape[0], -1), GGMLQuantizationType[form])
    return torch.from_numpy(values).reshape(shape)
