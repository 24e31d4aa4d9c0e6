"""Which weight is stored in which number format, and what each network computes in: data that the manifest
records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

COMPUTE = ("fp32", "fp16", "bf16")
"""Formats that a network can compute in."""

BIG_MODEL = 1_000_000_000
"""Parameters; from here on the default is bf16. Below, fp32: ONNX Runtime's CPU has no bf16 MatMul."""


@dataclass(frozen=True)
class Rule:
    """Weights of `network` whose name matches `weight` (both with shell wildcards) are stored as `format`.

    `format` is a number format of `quant`, or "compute" for the format that the network computes in.
    """

    network: str
    weight: str
    format: str


@dataclass(frozen=True)
class Recipe:
    """`compute` has one format for each network; the first rule that matches a weight decides its own."""

    weights: str
    compute: dict[str, str]
    rules: tuple[Rule, ...] = ()

    def format_of(self, network: str, weight: str, is_linear: bool) -> str:
        """The stored format of a weight. Only weights of linears are ever quantized, whatever the rules
        say."""
        if is_linear:
            for rule in self.rules:
                if fnmatchcase(network, rule.network) and fnmatchcase(weight, rule.weight):
                    return self.compute[network] if rule.format == "compute" else rule.format
        return self.compute[network]

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
    networks: tuple[str, ...], parameters: int, compute: str | None, quantization: str | None = None
) -> Recipe:
    """The recipe that the command line's flags stand for.

    Args:
        networks: names of the bundle's networks.
        parameters: of the whole model; decides the default of `compute`.
        compute: what to compute in, or None for the model's default.
        quantization: format of the blocks' linears: "fp8", "int8", "int4", or None for none.
    """
    widest = "bf16" if parameters >= BIG_MODEL else "fp32"
    compute = compute or widest
    formats = dict.fromkeys(networks, compute)
    if compute == "fp16":
        formats["text_encoder_2"] = widest  # T5's activations leave the range of fp16
    rules = (*SPARED, Rule("*", "*", quantization)) if quantization else ()
    return Recipe(weights=quantization or compute, compute=formats, rules=rules)
