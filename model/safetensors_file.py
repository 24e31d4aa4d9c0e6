"""Reads one tensor of a safetensors file at a time: the header is checked in full first, then bytes are read
by offset.

Plain reads rather than a memory map: mapped pages would count as this process's memory, and a 24 GB file has
many.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from ..errors import KontextError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of number formats."""

HEADER_LIMIT = 100_000_000
"""Bytes; the format's own limit."""

PASSING = 1 << 20
"""Bytes from which on a tensor leaves the system's page cache once it is read: a checkpoint of 34 GB passes through
once, and pages that are used again need no new memory (cold reads of 1900 MB/s instead of 600 on a virtual machine)."""

DIMS_LIMIT = 64
"""What PyTorch's operators take; the product of the longest hostile shape would take hours."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is: `start` and `stop` are bytes from the beginning of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            KontextError: the file can no longer be read as its header said.
        """
        tensor = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        if not tensor.numel():
            return tensor
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                count = file.readinto(data)
                if len(data) >= PASSING and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), self.start, len(data), os.POSIX_FADV_DONTNEED)
        except OSError as fault:
            raise KontextError(f"cannot read {self.path}: {fault.strerror}") from None
        if count != len(data):
            raise KontextError(f"{self.path} is truncated at tensor {self.name}: download it again")
        return tensor


@dataclass(frozen=True)
class Header:
    """What a file holds; `digest` is the SHA-256 of the header's bytes."""

    tensors: dict[str, TensorInfo]
    digest: str


def read_header(path: Path) -> Header:
    """The tensors of `path`, none of them read.

    Raises:
        KontextError: the file is missing, truncated, or its header contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= HEADER_LIMIT:
                raise KontextError(f"{path} is not a safetensors file")
            if length > size - 8:
                raise KontextError(
                    f"{path} is truncated: {size} bytes, its header alone is {length}: download it again"
                )
            raw = file.read(length)
    except FileNotFoundError:
        raise KontextError(f"{path} is missing: the checkpoint is incomplete") from None
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    try:
        entries = json.loads(raw, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as fault:
        raise KontextError(f"{path} has a damaged safetensors header: {fault}") from None
    if not isinstance(entries, dict):
        raise KontextError(f"{path} has a damaged safetensors header: not a JSON object")
    entries.pop("__metadata__", None)
    tensors = {name: tensor_info(path, name, entry, 8 + length) for name, entry in entries.items()}
    places = ((info.start, info.stop, info.name) for info in tensors.values())
    check_layout(path, "safetensors", places, 8 + length, size)
    return Header(tensors, hashlib.sha256(raw).hexdigest())


def unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def tensor_info(path: Path, name: str, entry: object, base: int) -> TensorInfo:
    fault = KontextError(f"{path} has a damaged safetensors header at {name!r}")
    if not isinstance(entry, dict):
        raise fault
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise KontextError(f"{path}: tensor {name!r} has the unknown number format {dtype!r}")
    if not whole_numbers(shape) or not whole_numbers(offsets) or len(shape) > DIMS_LIMIT:
        raise fault
    # A tensor with no elements has strides too, and PyTorch counts them in 64 bits.
    if math.prod(max(length, 1) for length in shape) >= 1 << 62:
        raise fault
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise fault
    return TensorInfo(path, name, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def check_layout(
    path: Path, kind: str, tensors: Iterable[tuple[int, int, str]], base: int, size: int, alignment: int = 1
) -> None:
    """Raises KontextError unless tensors (start, stop, name) follow each other with no overlap and no gap but the
    alignment's, from `base` up to the file's end, where the last padding may be missing."""
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
