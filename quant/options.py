"""Ways to store a layer, as text ("int4", "int4:0", "fp8+fp8"), and the bytes that each takes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from ..errors import KontextError
from ..safetensors_header import BITS
from . import low_rank
from .formats import COMPUTE, FORMATS
from .recipe import Layer, Rule, engine_rules
from .weight_layout import weight_layout


@dataclass(frozen=True)
class Option:
    """A number format, the rank of the low-rank branch beside it (None: chosen by the weight's size), and the format
    that the linear's inputs are rounded to as compiled engines multiply, "" for none."""

    format: str
    rank: int | None = 0
    inputs: str = ""

    @classmethod
    def parse(cls, text: str) -> Option:
        """FORMAT[:RANK][+INPUTS], where RANK is a number or auto, by default the format's usual rank, and INPUTS the
        format that inputs are rounded to.

        Raises:
            KontextError: no such format or rank, or no linear takes such inputs with these weights.
        """
        match = re.fullmatch(r"([a-z][a-z0-9_]*)(?::(auto|\d{1,3}))?(?:\+([a-z0-9]+))?", text.strip().lower())
        if not match or match[1] not in FORMATS:
            raise KontextError(
                f"{text.strip()!r} is not a number format: choose from {', '.join(FORMATS)}; a colon and a number set "
                "the rank of the low-rank branch (int4:0, int4:32), a plus and a format what inputs are rounded to "
                "(fp8+fp8, int4+int8)"
            )
        name, rank, inputs = match[1], match[2], match[3] or ""
        if inputs and inputs not in (taken := input_formats(name)):
            takes = f"inputs in {' or '.join(taken)}" if taken else "no rounded inputs"
            raise KontextError(f"{text.strip()!r}: engines multiply {name} weights by {takes}")
        if rank is None:
            return cls(name, usual_rank(name), inputs)
        return cls(name, None if rank == "auto" else int(rank), inputs)

    def __str__(self) -> str:
        rank = (
            "" if self.rank == usual_rank(self.format) else f":{'auto' if self.rank is None else self.rank}"
        )
        return f"{self.format}{rank}{'+' * bool(self.inputs)}{self.inputs}"

    def rule(self, network: str, weight: str) -> Rule:
        """How it stores a weight. Inputs are rounded as an export with such flags rounds them: not in every network,
        and not in all linears of the text."""
        if self.inputs:
            for rule in engine_rules(self.format, self.rank, self.inputs):
                if rule.matches(network, weight):
                    return replace(rule, network=network, weight=weight)
        return Rule(network, weight, self.format, self.rank)

    def layer(self, network: str, weight: str, shape: tuple[int, int], compute_bytes: int) -> Layer:
        """How it stores a weight [in, out] in a network that computes in numbers of `compute_bytes`."""
        rule = self.rule(network, weight)
        rank = self.rank_of(shape, compute_bytes)
        return Layer(rule.format, rank, rule.activations, rule.centred, rule.rounding, rule.scaled)

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


def input_formats(name: str) -> tuple[str, ...]:
    """Formats that inputs of linears with weights in a format can be rounded to in engines."""
    own = (name,) if any(way.has_scale for way in FORMATS[name].input_roundings) else ()
    return (*own, *FORMATS[name].unpacked_inputs)


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
