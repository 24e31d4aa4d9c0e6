"""Plans a safetensors file for other programs: its header with metadata, and its tensors as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...safetensors_header import BITS, make_header
from ..weights.plan import UnplacedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from ..weights.write import Stream


@dataclass(frozen=True)
class Made:
    """Tensors that are made together, in this order."""

    tensors: tuple[UnplacedTensor, ...]
    make: Callable[[], Sequence[Tensor]]


def safetensors_stream(
    items: Iterable[Made], metadata: Mapping[str, str] | None = None, computes: bool = False
) -> Stream:
    """A file of `items`, in their order.

    Args:
        items: what it holds.
        metadata: the header's `__metadata__`; transformers wants {"format": "pt"}.
        computes: as of `Stream`.

    Raises:
        ValueError: a tensor would not start at a multiple of its number's bytes, which PyTorch needs.
    """
    from ..weights.write import Piece, Stream

    items = list(items)
    header, places = make_header((each for item in items for each in item.tensors), metadata)
    for entry in places.values():
        if entry.start % max(1, BITS[entry.dtype] // 8):
            raise ValueError(f"{entry.name} would start at byte {entry.start}, in the middle of a number")
    pieces = tuple(
        Piece(tuple(places[name] for name, *_ in item.tensors), item.make) for item in items if item.tensors
    )
    return Stream(header, pieces, computes)
