"""Recipes: which weight is stored in which number format, and what each network computes in. Data that the manifest
records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..model.stored_dtypes import STORED_DTYPES
from ..safetensors_header import BITS
from . import low_rank
from .formats import FORMATS
from .formats.base import InputRounding
from .formats.fp8 import FP8

COMPUTE_BYTES = {name: BITS[stored] // 8 for name, stored in STORED_DTYPES.items()}
"""Formats that a network can compute in → bytes of a number."""

BIG_MODEL = 1_000_000_000
"""Parameters from which on the default is bf16. Below it is fp32: ONNX Runtime's CPU has no bf16 MatMul."""

ANY_QUANTIZED = "int8"
"""A format that a weight fits if it fits any: a recipe of it quantizes every weight that some recipe quantizes."""


@dataclass(frozen=True)
class Layer:
    """How one weight is stored.

    Args:
        format: a number format, or what the network computes in.
        rank: of the low-rank branch beside it; 0: none.
        activations: the number format that its inputs are rounded to; "": none.
        centred: whether the inputs' mean is subtracted first.
        rounding: how its inputs are rounded, a value of `InputRounding`; "": as is usual for `activations`.
        scaled: whether each channel of the inputs is multiplied by a factor first, and the weight's rows divided by it.
    """

    format: str
    rank: int = 0
    activations: str = ""
    centred: bool = False
    rounding: str = ""
    scaled: bool = False

    @property
    def input_rounding(self) -> InputRounding | None:
        """How its inputs are rounded; None if they are not."""
        if not self.activations:
            return None
        return InputRounding(self.rounding or FORMATS[self.activations].input_roundings[0])

    @property
    def is_unpacked_to_inputs(self) -> bool:
        """Whether the weight is unpacked to the format of its inputs before the product, with a scale per output
        channel that is stored beside it."""
        return self.activations not in ("", self.format)

    @property
    def has_static_inputs(self) -> bool:
        """Whether all its inputs are rounded with one scale, which is stored beside the weight."""
        return self.input_rounding is InputRounding.STATIC

    @property
    def has_input_scale(self) -> bool:
        """Whether a scale of its inputs is stored beside the weight."""
        return self.input_rounding is not None and self.input_rounding.has_scale

    def as_json(self) -> str | dict[str, object]:
        """As in the manifest: the format alone where everything else has its default."""
        more = {key: value for key, value in asdict(self).items() if value}
        return self.format if len(more) == 1 else more

    @classmethod
    def from_json(cls, entry: str | Mapping[str, Any]) -> Layer:
        """The inverse of `as_json`."""
        return cls(entry) if isinstance(entry, str) else cls(**entry)


@dataclass(frozen=True)
class Rule:
    """Weights of `network` whose name matches `weight` (both with shell wildcards) are stored as `format`.

    `format` is a number format, or "compute" for the one that the network computes in. `rank` is that of the low-rank
    branch, None for one chosen by the weight's size; the others are as in `Layer`.
    """

    network: str
    weight: str
    format: str
    rank: int | None = 0
    activations: str = ""
    centred: bool = False
    rounding: str = ""
    scaled: bool = False

    def matches(self, network: str, weight: str) -> bool:
        return fnmatchcase(network, self.network) and fnmatchcase(weight, self.weight)

    @property
    def has_input_scale(self) -> bool:
        return Layer(self.format, activations=self.activations, rounding=self.rounding).has_input_scale

    @property
    def needs_calibration(self) -> bool:
        """Whether what it says of the inputs comes from statistics."""
        return self.centred or self.scaled or self.has_input_scale


@dataclass(frozen=True)
class Recipe:
    """`compute` has one format for each network; the first rule that matches a weight decides how it is stored.

    `weights` names the recipe. `calibration` is the digest of the statistics that rounding and scales come from, ""
    where weights are rounded to the nearest. `attention` is the number format that the transformer's attention rounds
    its operands to, "" for none.
    """

    weights: str
    compute: dict[str, str]
    rules: tuple[Rule, ...] = ()
    calibration: str = ""
    attention: str = ""

    def layer_of(self, network: str, weight: str, shape: tuple[int, ...], is_linear: bool) -> Layer:
        """How a weight of `shape` (as stored, [in, out]) is stored.

        Only weights of linears are quantized, whatever the rules say, and only to formats that they fit.
        """
        compute = self.compute[network]
        rule = (
            next((rule for rule in self.rules if rule.matches(network, weight)), None) if is_linear else None
        )
        if rule is None or rule.format == "compute" or not FORMATS[rule.format].fits(shape):
            return Layer(compute)
        rank = rule.rank
        if rank is None:
            rank = low_rank.rank_for((shape[0], shape[1]), COMPUTE_BYTES[compute])
        rank = min(rank, *shape) if rank else 0
        return Layer(rule.format, rank, rule.activations, rule.centred, rule.rounding, rule.scaled)

    @property
    def is_for_gpus(self) -> bool:
        """Whether products of integers take the form for GPUs: where the transformer computes in 16 bits."""
        return COMPUTE_BYTES[self.compute["transformer"]] == 2

    def as_json(self) -> dict[str, object]:
        """As in the manifest; rules have `rounding` and `scaled` only where they are not the usual ones."""
        result = asdict(self)
        for rule in result["rules"]:
            for field in ("rounding", "scaled"):
                if not rule[field]:
                    del rule[field]
        return result

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()


SPARED = (
    # The first and last layers: few weights, and every error in them reaches every token.
    Rule("modulation", "time_in.*", "compute"),
    Rule("modulation", "guidance_in.*", "compute"),
    Rule("modulation", "vector_in.*", "compute"),
    Rule("*", "final_layer.*", "compute"),
    Rule("transformer", "img_in.*", "compute"),
    Rule("transformer", "txt_in.*", "compute"),
    Rule("vae_*", "*", "compute"),
)
"""Rules that every quantized recipe starts with."""


def choose_recipe(
    networks: tuple[str, ...],
    parameters: int,
    compute: str | None,
    quantization: str | None = None,
    rank: int | None = 0,
    *,
    calibrated: bool = False,
    weight_only: bool = False,
    static_inputs: bool = False,
    inputs: str | None = None,
    fp8_attention: bool = False,
) -> Recipe:
    """The recipe that the command line's flags stand for.

    Args:
        networks: names of the bundle's networks.
        parameters: of the whole model; decides the default of `compute`.
        compute: what to compute in, or None for the model's default.
        quantization: format of the blocks' linears, one of `FORMATS`, or None for none.
        rank: of the low-rank branches; None for one by size.
        calibrated: there will be statistics, so inputs can have static scales and be centred.
        weight_only: do not round the linears' inputs.
        static_inputs: round them with static scales where the format can; needs `calibrated`.
        inputs: round them with static scales to this format, one of the weights' `unpacked_inputs`; needs `calibrated`.
        fp8_attention: round the operands of the transformer's attention to E4M3 with static scales.
    """
    compute = compute or ("bf16" if parameters >= BIG_MODEL else "fp32")
    formats = dict.fromkeys(networks, compute)
    if compute == "fp16":
        # T5's activations leave the range of fp16. Not bf16: what needs fp16 (Turing, ONNX Runtime's CPU) lacks it.
        formats["text_encoder_2"] = "fp32"
    rules: tuple[Rule, ...] = ()
    if quantization is not None:
        if inputs is not None:
            rounding: InputRounding | None = InputRounding.STATIC
        else:
            rounding = None if weight_only else chosen_rounding(quantization, calibrated, static_inputs)
        rules = (*SPARED, *format_rules(quantization, rank, rounding, calibrated, inputs))
    return Recipe(
        weights=quantization or compute,
        compute=formats,
        rules=rules,
        attention=FP8.name if fp8_attention else "",
    )


def chosen_rounding(name: str, calibrated: bool, static_inputs: bool) -> InputRounding | None:
    """How linears of a format have their inputs rounded: as is usual for it, or with static scales; None without what
    that takes."""
    ways = FORMATS[name].input_roundings
    rounding = InputRounding.STATIC if static_inputs else next(iter(ways), None)
    return rounding if rounding in ways and (calibrated or not rounding.has_scale) else None


def format_rules(
    name: str, rank: int | None, rounding: InputRounding | None, calibrated: bool, inputs: str | None = None
) -> tuple[Rule, ...]:
    """Rules that store every linear as `name`, its inputs rounded to `inputs` (default: to `name`) in one of that
    format's ways, or None: not at all."""
    inputs = inputs or name
    rest = Rule("*", "*", name, rank)
    if rounding is None:
        return (rest,)
    if rounding is not FORMATS[inputs].input_roundings[0]:
        # One step for all channels: their ranges are evened out, after a GELU too. Text is a twentieth of the tokens,
        # and a calibration has few prompts: text outside its range would be clipped.
        return (
            Rule("transformer", "*.txt_*", name, rank),
            Rule("transformer", "*", name, rank, inputs, True, rounding.value, scaled=True),
            rest,
        )
    rules = (
        # The GELU before it writes codes in the same pass, and its outputs' mean is small.
        Rule("transformer", "*_mlp.2.weight", name, rank, inputs),
        Rule("transformer" if rounding.has_scale else "*", "*", name, rank, inputs, centred=calibrated),
    )
    return (*rules, rest) if rounding.has_scale else rules


def engine_rules(name: str, rank: int | None, inputs: str) -> tuple[Rule, ...]:
    """Rules that store every linear as `name`, its inputs rounded to `inputs` in the way that compiled engines take,
    with scales from a calibration."""
    ways = FORMATS[inputs].input_roundings
    rounding = next(way for way in ways if way.has_scale)
    return format_rules(name, rank, rounding, True, inputs)
