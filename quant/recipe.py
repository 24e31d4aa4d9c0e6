"""Which weight is stored in which number format, and what each network computes in: data that the manifest
records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from . import low_rank
from .formats import FORMATS

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Formats that a network can compute in, and bytes of a number of each."""

BIG_MODEL = 1_000_000_000
"""Parameters; from here on the default is bf16. Below, fp32: ONNX Runtime's CPU has no bf16 MatMul."""


@dataclass(frozen=True)
class Layer:
    """How one weight is stored: `format`, `rank` of the branch beside it (0: none), the number format that its inputs
    are rounded to ("": none; "fp8": with a static scale; "int8": with one for each token, found at run time), and
    whether these are centred first."""

    format: str
    rank: int = 0
    activations: str = ""
    centred: bool = False

    def as_json(self) -> str | dict[str, object]:
        """The format alone where there is nothing else to say, as the manifest has it."""
        more = {key: value for key, value in asdict(self).items() if value}
        return self.format if len(more) == 1 else more

    @classmethod
    def from_json(cls, entry: str | Mapping[str, Any]) -> Layer:
        """The inverse of `as_json`."""
        return cls(entry) if isinstance(entry, str) else cls(**entry)


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
    centred: bool = False

    def matches(self, network: str, weight: str) -> bool:
        return fnmatchcase(network, self.network) and fnmatchcase(weight, self.weight)


@dataclass(frozen=True)
class Recipe:
    """`compute` has one format for each network; the first rule that matches a weight decides its own.

    `calibration` is the digest of the statistics that rounding and scales come from, "" where weights are rounded to
    the nearest. `attention` is the number format that the transformer's attention rounds its operands to, "" for none.
    """

    weights: str
    compute: dict[str, str]
    rules: tuple[Rule, ...] = ()
    calibration: str = ""
    attention: str = ""

    def layer_of(self, network: str, weight: str, shape: tuple[int, ...], is_linear: bool) -> Layer:
        """How a weight of `shape` (as stored, [in, out]) is stored.

        Only weights of linears are ever quantized, whatever the rules say, and only to formats that they fit.
        """
        compute = self.compute[network]
        rule = (
            next((rule for rule in self.rules if rule.matches(network, weight)), None) if is_linear else None
        )
        if rule is None or rule.format == "compute" or not FORMATS[rule.format].fits(shape):
            return Layer(compute)
        rank = rule.rank
        if rank is None:
            rank = low_rank.rank_for((shape[0], shape[1]), BYTES[compute])
        return Layer(rule.format, min(rank, *shape) if rank else 0, rule.activations, rule.centred)

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
    *,
    calibrated: bool = False,
    weight_only: bool = False,
    fp8_attention: bool = False,
) -> Recipe:
    """The recipe that the command line's flags stand for.

    Args:
        networks: names of the bundle's networks.
        parameters: of the whole model; decides the default of `compute`.
        compute: what to compute in, or None for the model's default.
        quantization: format of the blocks' linears, one of `formats.FORMATS`, or None for none.
        rank: of the low-rank branches; None for one by size.
        calibrated: there will be statistics, so that activations can have static scales and be centred.
        weight_only: leave activations as they are.
        fp8_attention: round the operands of the transformer's attention to E4M3 with static scales.
    """
    widest = "bf16" if parameters >= BIG_MODEL else "fp32"
    compute = compute or widest
    formats = dict.fromkeys(networks, compute)
    if compute == "fp16":
        formats["text_encoder_2"] = widest  # T5's activations leave the range of fp16
    rules: tuple[Rule, ...] = ()
    if quantization == "int8" and not weight_only:
        rules = (
            Rule("transformer", "*_mlp.2.weight", "int8", rank, "int8"),
            Rule("*", "*", "int8", rank, "int8", centred=calibrated),
        )
    elif quantization is not None:
        rules = (Rule("*", "*", quantization, rank),)
        if quantization == "fp8" and calibrated and not weight_only:
            rules = (
                # The GELU before it writes E4M3 in the same pass, and its outputs' mean is small.
                Rule("transformer", "*_mlp.2.weight", "fp8", rank, "fp8"),
                Rule("transformer", "*", "fp8", rank, "fp8", centred=True),
                *rules,
            )
    return Recipe(
        weights=quantization or compute,
        compute=formats,
        rules=(*SPARED, *rules) if rules else (),
        attention="fp8" if fp8_attention else "",
    )
