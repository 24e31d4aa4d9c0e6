"""Which weight is stored in which number format, and what each network computes in: data that the manifest
records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from . import int4, low_rank

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Formats that a network can compute in, and bytes of a number of each."""

BIG_MODEL = 1_000_000_000
"""Parameters; from here on the default is bf16. Below, fp32: ONNX Runtime's CPU has no bf16 MatMul."""


@dataclass(frozen=True)
class Layer:
    """How one weight is stored: `format`, `rank` of the branch beside it (0: none), and the number format that a graph
    for engines rounds its inputs to ("": none)."""

    format: str
    rank: int = 0
    activations: str = ""


@dataclass(frozen=True)
class Rule:
    """Weights of `network` whose name matches `weight` (both with shell wildcards) are stored as `format`.

    `format` is a number format of `quant`, or "compute" for the format that the network computes in. `rank` is that of
    a low-rank branch, None for one chosen by the weight's size; `activations` as in `Layer`.
    """

    network: str
    weight: str
    format: str
    rank: int | None = 0
    activations: str = ""

    def matches(self, network: str, weight: str) -> bool:
        return fnmatchcase(network, self.network) and fnmatchcase(weight, self.weight)


@dataclass(frozen=True)
class Recipe:
    """`compute` has one format for each network; the first rule that matches a weight decides its own.

    `calibration` is the digest of the statistics that rounding and scales come from, "" where weights are rounded to
    the nearest.
    """

    weights: str
    compute: dict[str, str]
    rules: tuple[Rule, ...] = ()
    calibration: str = ""

    def layer_of(self, network: str, weight: str, shape: tuple[int, ...], is_linear: bool) -> Layer:
        """How a weight of `shape` (as stored, [in, out]) is stored.

        Only weights of linears are ever quantized, whatever the rules say, and to INT4 only those of whole groups.
        """
        compute = self.compute[network]
        rule = (
            next((rule for rule in self.rules if rule.matches(network, weight)), None) if is_linear else None
        )
        if rule is None or rule.format == "compute" or (rule.format == "int4" and not int4.fits(shape)):
            return Layer(compute)
        rank = rule.rank
        if rank is None:
            rank = low_rank.rank_for((shape[0], shape[1]), BYTES[compute])
        return Layer(rule.format, min(rank, *shape) if rank else 0, rule.activations)

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()


SPARED = (
    # What enters and leaves the network: few weights, and every error in them reaches every token.
    Rule("modulation", "time_in.*", "compute"),
    Rule("modulation", "guidance_in.*", "compute"),
    Rule("modulation", "vector_in.*", "compute"),
    Rule("*", "final_layer.*", "compute"),
    Rule("transformer", "img_in.*", "compute"),
    Rule("transformer", "txt_in.*", "compute"),
    Rule("vae_*", "*", "compute"),
)
"""Rules that every quantized recipe starts with."""


def choose(
    networks: tuple[str, ...],
    parameters: int,
    compute: str | None,
    quantization: str | None = None,
    rank: int | None = 0,
) -> Recipe:
    """The recipe that the command line's flags stand for.

    Args:
        networks: names of the bundle's networks.
        parameters: of the whole model; decides the default of `compute`.
        compute: what to compute in, or None for the model's default.
        quantization: format of the blocks' linears: "fp8", "int8", "int4", or None for none.
        rank: of the low-rank branches; None for one by size.
    """
    widest = "bf16" if parameters >= BIG_MODEL else "fp32"
    compute = compute or widest
    formats = dict.fromkeys(networks, compute)
    if compute == "fp16":
        formats["text_encoder_2"] = widest  # T5's activations leave the range of fp16
    rules = (*SPARED, Rule("*", "*", quantization, rank)) if quantization else ()
    return Recipe(weights=quantization or compute, compute=formats, rules=rules)
