"""The weights of an engine, read from the graph's safetensors file by their tensors' names."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from ....errors import KontextError
from ....regular_files import open_regular
from ....safetensors_header import TensorEntry, read_header


class MappedWeights:
    """A memory-mapped safetensors file: bytes are read from disk when they are accessed, without a copy.

    Raises:
        KontextError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries = read_header(path).tensors
            with open_regular(path) as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise KontextError(f"cannot read {path}: {error.strerror}") from None
        self.bytes = np.frombuffer(self.map, np.uint8)

    def entry(self, name: str, size: int) -> TensorEntry:
        """Where the tensor `name` of `size` bytes is.

        Raises:
            KontextError: the file has no such tensor or one of another size: the engine was built for other weights.
        """
        entry = self.entries.get(name)
        if entry is None or entry.size != size:
            found = "no such tensor" if entry is None else f"{entry.size}"
            raise KontextError(
                f"the engine needs {size} bytes of {name}, but {self.path} has {found}: build the engines again"
            )
        return entry

    def address(self, entry: TensorEntry) -> int:
        """The address of a tensor in this process's memory."""
        return int(self.bytes.ctypes.data) + entry.start
