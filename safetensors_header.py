"""The header of a safetensors file, read and checked in full, or written. Standard library only.

A file is 8 bytes of header length (little endian), the header (JSON: name → dtype, shape, byte offsets), the tensors.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from .errors import KontextError
from .regular_files import open_regular, parse_json

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip
"""Number formats, as safetensors names them → bits of one number."""

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_DIMENSIONS = 64
"""PyTorch's limit. Without one, the product of a hostile shape could take hours."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's place in a file: `dtype` is a key of `BITS`; `start` and `stop` count bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """`metadata` is the file's `__metadata__`, empty if it has none; `digest` is the SHA-256 of the header's JSON."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, Any]
    digest: str


def read_header(path: Path) -> Header:
    """Reads the header of `path` and none of its tensors.

    Raises:
        KontextError: the file is missing or truncated, or its header is damaged.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
                raise KontextError(f"{path} is not a safetensors file")
            if length > size - 8:
                raise KontextError(
                    f"{path} is truncated: {size} bytes, its header alone is {length}: download it again"
                )
            text = file.read(length)
    except FileNotFoundError:
        raise KontextError(f"{path} is missing") from None
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    try:
        entries = parse_json(text, object_pairs_hook=unique_names)
    except ValueError as error:
        raise KontextError(f"{path} has a damaged safetensors header: {error}") from None
    if not isinstance(entries, dict):
        raise KontextError(f"{path} has a damaged safetensors header: not a JSON object")
    metadata = entries.pop("__metadata__", None)
    tensors = {name: read_entry(path, name, entry, 8 + length) for name, entry in entries.items()}
    places = ((tensor.start, tensor.stop, tensor.name) for tensor in tensors.values())
    check_layout(path, "safetensors", places, 8 + length, size)
    digest = hashlib.sha256(text).hexdigest()
    return Header(tensors, metadata if isinstance(metadata, dict) else {}, digest)


def make_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, TensorEntry]]:
    """The first bytes of a file that holds `tensors`, given as (name, dtype, shape), and each one's place in it.

    The header is padded with spaces to a multiple of 8 bytes, as the safetensors library does.
    """
    entries, start = [], 0
    for name, dtype, shape in tensors:
        stop = start + BITS[dtype] * math.prod(shape) // 8
        entries.append(TensorEntry(name, dtype, shape, start, stop))
        start = stop
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    fields |= {
        entry.name: {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.stop],
        }
        for entry in entries
    }
    text = aligned(json.dumps(fields, separators=(",", ":")).encode())
    base = 8 + len(text)
    placed = {
        entry.name: TensorEntry(entry.name, entry.dtype, entry.shape, base + entry.start, base + entry.stop)
        for entry in entries
    }
    return len(text).to_bytes(8, "little") + text, placed


def aligned(text: bytes) -> bytes:
    """JSON with spaces behind it up to a multiple of 8 bytes, so that numbers may follow."""
    return text + b" " * (-len(text) % 8)


def unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def read_entry(path: Path, name: str, entry: object, base: int) -> TensorEntry:
    """Checks one tensor's JSON; `base` is where the tensors begin, in bytes from the file's start."""
    damaged = KontextError(f"{path} has a damaged safetensors header at {name!r}")
    if not isinstance(entry, dict):
        raise damaged
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise KontextError(f"{path}: tensor {name!r} has the unknown number format {dtype!r}")
    if not is_whole_numbers(shape) or not is_whole_numbers(offsets) or len(shape) > MAX_DIMENSIONS:
        raise damaged
    # Empty tensors have strides too, and PyTorch computes them in 64 bits.
    if math.prod(max(length, 1) for length in shape) >= 1 << 62:
        raise damaged
    if len(offsets) != 2 or 8 * (offsets[1] - offsets[0]) != math.prod(shape) * BITS[dtype]:
        raise damaged
    return TensorEntry(name, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def is_whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def check_layout(
    path: Path, kind: str, tensors: Iterable[tuple[int, int, str]], base: int, size: int, alignment: int = 1
) -> None:
    """Raises KontextError unless the tensors fill the file exactly.

    Args:
        path, kind: of the file, for messages.
        tensors: (start, stop, name) of each, in bytes from the file's start. They must follow each other without
            overlap, and with no gap but the alignment's.
        base: where the first tensor must start.
        size: of the file; padding behind the last tensor may be missing.
        alignment: every tensor starts at a multiple of it.
    """
    position = stop = base
    for start, stop, name in sorted(tensors):
        if start != position:
            raise KontextError(f"{path} has a damaged {kind} header: tensor {name!r} is out of place")
        position = padded(stop, alignment)
    if stop > size:
        raise KontextError(f"{path} is truncated: {size} of {stop} bytes: download it again")
    if position < size:
        raise KontextError(f"{path} is damaged: {size - position} bytes more than its header says")


def padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
