"""Recipes as JSON files: ordered rules that say how each weight is stored.

{"compute": "bf16", "rules": [{"network": "transformer", "weight": "single_*", "format": "int4", "rank": "auto"}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..regular_files import read_json
from .formats import FORMATS
from .formats.fp8 import FP8
from .formats.layer_fields import check_inputs
from .recipe import COMPUTE_BYTES, SPARED, Recipe, Rule

MAX_BYTES = 16 << 20
"""Of a recipe; a larger file is something else."""

MAX_RANK = 512

FIELDS = ("compute", "rules", "spare", "attention", "weights", "calibration")
"""Of the file. The last two are in `precision.recipe` of a manifest too; they are ignored here."""

RULE_FIELDS = ("network", "weight", "format", "rank", "activations", "centred", "rounding", "scaled")


def read_recipe(path: Path, compute: Mapping[str, str], fixed: bool = False) -> Recipe:
    """The recipe in `path`.

    Args:
        path: a JSON object with `rules`; `compute` (one format, or one for each network) and `spare` (false: layers
            that every other quantized export leaves alone may be quantized too) are optional.
        compute: network → what it computes in if the file does not say.
        fixed: the user asked for this `compute`, so the file must agree.

    Raises:
        KontextError: not a recipe; the message says what is wrong and where.
    """
    try:
        data = read_json(path, MAX_BYTES, "a recipe")
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    if not isinstance(data, dict):
        raise KontextError(f"{path} is not a recipe: expected an object with rules")
    check_fields(data, FIELDS, str(path))
    rules = data.get("rules")
    if not isinstance(rules, list) or not rules:
        raise KontextError(f"{path}: rules must be a list of at least one rule")
    spare = data.get("spare", True)
    if not isinstance(spare, bool):
        raise KontextError(f"{path}: spare must be true or false")
    own = tuple(read_rule(rule, f"{path}: rule {number}") for number, rule in enumerate(rules, 1))
    formats = read_compute(data.get("compute", compute), tuple(compute), str(path))
    if fixed and formats != compute:
        raise KontextError(
            f"{path} sets compute: leave out --fp32, --fp16 and --bf16, or remove it from the file"
        )
    attention = data.get("attention", "")
    if attention not in ("", FP8.name):
        raise KontextError(f"{path}: attention is {attention!r}, expected {FP8.name} or nothing")
    return Recipe(path.stem, formats, (*SPARED, *own) if spare else own, attention=attention)


def read_compute(data: Any, networks: tuple[str, ...], where: str) -> dict[str, str]:
    """Network → format."""
    if isinstance(data, str):
        data = dict.fromkeys(networks, data)
    listed = ", ".join(COMPUTE_BYTES)
    if not isinstance(data, Mapping) or set(data) != set(networks):
        raise KontextError(
            f"{where}: compute must be {listed}, or an object with one of them for each of {', '.join(networks)}"
        )
    for network, name in data.items():
        if name not in COMPUTE_BYTES:
            raise KontextError(f"{where}: compute of {network} is {name!r}, expected {listed}")
    return {name: data[name] for name in networks}


def read_rule(data: Any, where: str) -> Rule:
    if not isinstance(data, dict):
        raise KontextError(f"{where} is not an object")
    check_fields(data, RULE_FIELDS, where)
    network, weight = data.get("network", "*"), data.get("weight", "*")
    if not isinstance(network, str) or not isinstance(weight, str):
        raise KontextError(f"{where}: network and weight must be names or patterns")
    name = data.get("format")
    if name not in FORMATS and name != "compute":
        raise KontextError(f"{where}: format is {name!r}, expected {', '.join(FORMATS)} or compute")
    rank = data.get("rank", 0)
    automatic = rank is None or rank == "auto"
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    if not automatic and not (whole and 0 <= rank <= MAX_RANK):
        raise KontextError(f"{where}: rank is {rank!r}, expected auto or a number from 0 to {MAX_RANK}")
    activations = data.get("activations", "")
    rounding = data.get("rounding", "")
    check_inputs(where, name, activations, rounding)
    centred = data.get("centred", False)
    if not isinstance(centred, bool):
        raise KontextError(f"{where}: centred must be true or false")
    if activations and rounding == FORMATS[activations].input_roundings[0].value:
        rounding = ""
    scaled = data.get("scaled", False)
    if not isinstance(scaled, bool):
        raise KontextError(f"{where}: scaled must be true or false")
    rule = Rule(network, weight, name, None if automatic else rank, activations, centred, rounding, scaled)
    if scaled and not rule.has_input_scale:
        raise KontextError(
            f"{where}: scaled only applies with activations that have a scale from calibration"
        )
    return rule


def check_fields(data: Mapping[str, object], fields: tuple[str, ...], where: str) -> None:
    for field in data:
        if field not in fields:
            raise KontextError(f"{where}: unknown field {field!r}; the fields are {', '.join(fields)}")


def check_patterns(recipe: Recipe, linears: Mapping[str, set[str]]) -> None:
    """Checks that each of the user's rules matches some layer.

    Args:
        recipe: to check.
        linears: network → weights that may be quantized.

    Raises:
        KontextError: names the pattern that matches nothing.
    """
    for rule in recipe.rules:
        if rule in SPARED:
            continue
        if not any(
            rule.matches(network, weight) for network, weights in linears.items() for weight in weights
        ):
            example = min(linears.get(rule.network, linears["transformer"]))
            raise KontextError(
                f"no layer of this model matches network {rule.network!r}, weight {rule.weight!r}: networks are "
                f"{', '.join(linears)}, and a layer's name is, for example, {example}"
            )
