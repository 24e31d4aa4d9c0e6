"""What every reader of weight files returns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class StoredWeight(Protocol):
    """A tensor in a file, not yet read. `dtype` is the file format's name of its number format; `shape` is the
    weight's, whatever way it is packed."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> Tensor:
        """The tensor, in newly allocated memory, in a float format."""
        ...
