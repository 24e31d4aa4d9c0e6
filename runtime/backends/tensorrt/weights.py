"""Where an engine's weights lie in the bundle: each by its tensor's name in the graph's safetensors file."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from ....errors import KontextError
from ....safetensors_header import TensorEntry, read_header


class WeightFile:
    """A safetensors file, mapped: its bytes are read as they are asked for, and nothing is copied.

    Raises:
        KontextError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.places = read_header(path).tensors
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as fault:
            raise KontextError(f"cannot read {path}: {fault.strerror}") from None
        self.bytes = np.frombuffer(self.map, np.uint8)

    def place(self, name: str, size: int) -> TensorEntry:
        """The tensor `name`, which must have `size` bytes.

        Raises:
            KontextError: the file has none, or another size of it: the engine was built for other weights.
        """
        place = self.places.get(name)
        if place is None or place.size != size:
            there = "no such tensor" if place is None else f"{place.size} bytes of it"
            raise KontextError(
                f"the engine needs {size} bytes of {name}, and {self.path} has {there}: build the engines again"
            )
        return place

    def address(self, place: TensorEntry) -> int:
        """Where a tensor lies in this process's memory."""
        return int(self.bytes.ctypes.data) + place.start
