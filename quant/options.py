"""Ways to store a layer, as people write them ("int4", "int4:0", "fp8"), and the bytes that each takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import KontextError
from ..model.dtypes import TORCH_DTYPES
from . import low_rank
from .formats import FORMATS, WIDE
from .methods import layout
from .recipe import Layer

BRANCHED = ("int4", "nvfp4")
"""Formats that get a low-rank branch unless told otherwise, as on the command line."""


@dataclass(frozen=True)
class Option:
    """A quantized format and the rank of the branch beside it; None: by the weight's size."""

    format: str
    rank: int | None = 0

    @classmethod
    def parse(cls, text: str) -> Option:
        """FORMAT[:RANK], where RANK is a number or auto; auto for `BRANCHED`, 0 for others, unless given.

        Raises:
            KontextError: no such format or rank.
        """
        match = re.fullmatch(r"([a-z][a-z0-9_]*)(?::(auto|\d{1,3}))?", text.strip().lower())
        if not match or match[1] not in FORMATS:
            raise KontextError(
                f"{text.strip()!r} is no number format: choose from {', '.join(FORMATS)}, with the rank of a low-rank "
                "branch after a colon (int4:0, int4:32) or without"
            )
        if match[2] is None:
            return cls(match[1], None if match[1] in BRANCHED else 0)
        return cls(match[1], None if match[2] == "auto" else int(match[2]))

    def __str__(self) -> str:
        usual = None if self.format in BRANCHED else 0
        if self.rank == usual:
            return self.format
        return f"{self.format}:{'auto' if self.rank is None else self.rank}"

    def rank_of(self, shape: tuple[int, int], wide: int) -> int:
        """The rank for a weight [in, out] in a network that computes in `wide` bytes a number."""
        rank = low_rank.rank_for(shape, wide) if self.rank is None else self.rank
        return min(rank, *shape)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a weight [in, out] can be stored so."""
        return FORMATS[self.format].fits(shape)

    def stored_bytes(self, shape: tuple[int, int], wide: int) -> int:
        """Bytes of a weight [in, out]: values, scales and branch."""
        return layer_bytes(Layer(self.format, self.rank_of(shape, wide)), shape, wide)


def layer_bytes(layer: Layer, shape: tuple[int, int], wide: int) -> int:
    """Bytes that a quantized weight [in, out] is stored in, where the network computes in `wide` bytes a number."""
    return sum(
        math.prod(size) * (wide if dtype == WIDE else TORCH_DTYPES[dtype].itemsize)
        for _, dtype, size in layout(layer, shape)
    )


def parse_options(text: str) -> list[Option]:
    """Options separated by commas. Raises KontextError for one that is none, and where there is none."""
    options = list(dict.fromkeys(Option.parse(part) for part in text.split(",") if part.strip()))
    if not options:
        raise KontextError("name at least one number format, such as int8,int4")
    return options


def labels(options: Sequence[Option]) -> str:
    return ", ".join(map(str, options))
