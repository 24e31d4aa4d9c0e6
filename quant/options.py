"""Ways to store a layer, as text ("int4", "int4:0", "fp8"), and the bytes that each takes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import KontextError
from ..safetensors_header import BITS
from . import low_rank
from .formats import COMPUTE, FORMATS
from .recipe import Layer
from .weight_layout import weight_layout


@dataclass(frozen=True)
class Option:
    """A number format and the rank of the low-rank branch beside it; None: chosen by the weight's size."""

    format: str
    rank: int | None = 0

    @classmethod
    def parse(cls, text: str) -> Option:
        """FORMAT[:RANK], where RANK is a number or auto; by default the format's usual rank.

        Raises:
            KontextError: no such format or rank.
        """
        match = re.fullmatch(r"([a-z][a-z0-9_]*)(?::(auto|\d{1,3}))?", text.strip().lower())
        if not match or match[1] not in FORMATS:
            raise KontextError(
                f"{text.strip()!r} is not a number format: choose from {', '.join(FORMATS)}; a colon and a number set "
                "the rank of the low-rank branch (int4:0, int4:32)"
            )
        if match[2] is None:
            return cls(match[1], usual_rank(match[1]))
        return cls(match[1], None if match[2] == "auto" else int(match[2]))

    def __str__(self) -> str:
        if self.rank == usual_rank(self.format):
            return self.format
        return f"{self.format}:{'auto' if self.rank is None else self.rank}"

    def rank_of(self, shape: tuple[int, int], compute_bytes: int) -> int:
        """The rank for a weight [in, out] in a network that computes in numbers of `compute_bytes`."""
        rank = low_rank.rank_for(shape, compute_bytes) if self.rank is None else self.rank
        return min(rank, *shape)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a weight [in, out] can be stored so."""
        return FORMATS[self.format].fits(shape)

    def stored_bytes(self, shape: tuple[int, int], compute_bytes: int) -> int:
        """Bytes of a weight [in, out]: values, scales and branch."""
        return layer_bytes(Layer(self.format, self.rank_of(shape, compute_bytes)), shape, compute_bytes)


def usual_rank(format: str) -> int | None:
    """The rank of the low-rank branch unless the user gives one: by the weight's size, or 0 for a format without."""
    return None if FORMATS[format].has_branch else 0


def layer_bytes(layer: Layer, shape: tuple[int, int], compute_bytes: int) -> int:
    """Bytes that a quantized weight [in, out] is stored in, in a network that computes in numbers of
    `compute_bytes`."""
    return sum(
        math.prod(size) * (compute_bytes if dtype == COMPUTE else BITS[dtype] // 8)
        for _, dtype, size in weight_layout(layer, shape)
    )


def parse_options(text: str) -> list[Option]:
    """Options separated by commas. Raises KontextError for an unknown one, and for an empty list."""
    options = list(dict.fromkeys(Option.parse(part) for part in text.split(",") if part.strip()))
    if not options:
        raise KontextError("name at least one number format, such as int8,int4")
    return options
