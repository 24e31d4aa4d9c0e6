"""Reads the tensors of a safetensors file into PyTorch, one at a time, after its header has been checked in full.
PyTorch is imported when the first is read.

Plain reads instead of a memory map: mapped pages count as this process's memory, and a 24 GB file has many.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KontextError
from ..regular_files import open_regular
from ..safetensors_header import read_header
from .stored_dtypes import TORCH_NAMES

if TYPE_CHECKING:
    from torch import Tensor

UNCACHED_BYTES = 1 << 20
"""Tensors of at least this size are dropped from the system's page cache after they are read: a checkpoint of 34 GB is
read once, and reusing pages needs no new memory (cold reads at 1900 MB/s instead of 600 on a virtual machine)."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is: `start` and `stop` count bytes from the file's start."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def read(self) -> Tensor:
        """The tensor, in newly allocated memory.

        Raises:
            KontextError: the file can no longer be read, or has become shorter.
        """
        import torch

        from .dtypes import TORCH_DTYPES

        tensor = torch.empty(self.shape, dtype=TORCH_DTYPES[self.dtype])
        if not tensor.numel():
            return tensor
        self.read_into(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return tensor

    def read_bytes(self) -> bytes:
        """The tensor as it is stored, without PyTorch: for small ones.

        Raises:
            KontextError: as `read`.
        """
        data = bytearray(self.size)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_into(self, data: memoryview) -> None:
        """Fills `data`, of the tensor's size. Raises KontextError as `read`."""
        try:
            with open_regular(self.path) as file:
                file.seek(self.start)
                count = file.readinto(data)
                if len(data) >= UNCACHED_BYTES and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), self.start, len(data), os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise KontextError(f"cannot read {self.path}: {error.strerror}") from None
        if count != len(data):
            raise KontextError(f"{self.path} is truncated at tensor {self.name}: download it again")


@dataclass(frozen=True)
class SafetensorsFile:
    """`tensors` by name; `metadata` is the header's `__metadata__`, `digest` the header's SHA-256."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, Any]
    digest: str


def open_safetensors(path: Path) -> SafetensorsFile:
    """Reads the header of `path` and none of its tensors.

    Raises:
        KontextError: the file is missing or truncated, its header is damaged, or PyTorch lacks a tensor's format.
    """
    header = read_header(path)
    tensors = {}
    for entry in header.tensors.values():
        if entry.dtype not in TORCH_NAMES:
            raise KontextError(
                f"{path}: tensor {entry.name!r} has the number format {entry.dtype}, which is not supported"
            )
        tensors[entry.name] = TensorInfo(path, entry.name, entry.dtype, entry.shape, entry.start, entry.stop)
    return SafetensorsFile(tensors, header.metadata, header.digest)
