"""Where an engine's weights lie in the bundle: each by its tensor's name in the graph's safetensors file."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....errors import KontextError
from ...bundle import MAX_HEADER_BYTES

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8,
    "I64": 64, "I32": 32, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A tensor's bytes: from `start`, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class WeightFile:
    """A safetensors file, mapped: its bytes are read as they are asked for, and nothing is copied.

    Raises:
        KontextError: the file is not there, or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.places = read_places(memoryview(self.map))
        except OSError as fault:
            raise KontextError(f"cannot read {path}: {fault.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise KontextError(f"{path} is not a safetensors file: export the bundle again") from None
        self.bytes = np.frombuffer(self.map, np.uint8)

    def place(self, name: str, size: int) -> Place:
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

    def address(self, place: Place) -> int:
        """Where a tensor lies in this process's memory."""
        return int(self.bytes.ctypes.data) + place.start


def read_places(data: memoryview) -> dict[str, Place]:
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError("no header")
    fields = json.loads(bytes(data[8 : 8 + length]))
    places = {}
    for name, entry in fields.items():
        if name == "__metadata__":
            continue
        first, last = (int(offset) for offset in entry["data_offsets"])
        shape = tuple(int(size) for size in entry["shape"])
        if not 0 <= first <= last <= len(data) - 8 - length:
            raise ValueError(name)
        bits = BITS[entry["dtype"]] * int(np.prod(shape, dtype=np.int64))
        if bits != 8 * (last - first):
            raise ValueError(name)
        places[name] = Place(entry["dtype"], shape, 8 + length + first, last - first)
    return places
