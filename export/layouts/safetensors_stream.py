"""Plans a safetensors file for other programs: its header with metadata, and its tensors as a stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...safetensors_header import BITS, make_header
from ..weights.plan import UnplacedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from ..weights.write import Stream
    from .source import SourceWeight, WeightSource


@dataclass(frozen=True)
class Made:
    """Tensors that are made together, in this order."""

    tensors: tuple[UnplacedTensor, ...]
    make: Callable[[], Sequence[Tensor]]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(math.prod(shape) * BITS[dtype] // 8 for _, dtype, shape in self.tensors)

    @property
    def alignment(self) -> int:
        """Bytes of the widest of their numbers."""
        return max((BITS[dtype] // 8 for _, dtype, _ in self.tensors), default=1)


def unchanged(source: WeightSource, weight: SourceWeight, name: str, shape: tuple[int, ...]) -> Made:
    """A weight in what its network computes in, under another `name` and in another `shape` of as many numbers."""
    return Made(((name, source.dtype(weight.network), shape),), lambda: [source.read(weight)])


def safetensors_stream(
    items: Iterable[Made], metadata: Mapping[str, str] | None = None, computes: bool = False
) -> Stream:
    """A file of `items`, those of wider numbers first and otherwise in their order.

    Args:
        items: what it holds.
        metadata: the header's `__metadata__`; transformers wants {"format": "pt"}.
        computes: as of `Stream`.

    Raises:
        ValueError: a tensor would not start at a multiple of its number's bytes, which PyTorch needs.
    """
    from ..weights.write import Piece, Stream

    items = sorted(items, key=lambda item: -item.alignment)
    header, places = make_header((each for item in items for each in item.tensors), metadata)
    for entry in places.values():
        if entry.start % max(1, BITS[entry.dtype] // 8):
            raise ValueError(f"{entry.name} would start at byte {entry.start}, in the middle of a number")
    pieces = tuple(
        Piece(tuple(places[name] for name, *_ in item.tensors), item.make) for item in items if item.tensors
    )
    return Stream(header, pieces, computes)
