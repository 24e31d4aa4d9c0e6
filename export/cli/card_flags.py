"""The flags about the fastest recipe for a card, `--for` and what belongs to it, and the plan that they ask for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...compute_capability import engine_target
from ...errors import KontextError

if TYPE_CHECKING:
    from ...model.config import KontextConfig
    from ..calibration.fastest import CardPlan

DECIDED = (
    "fit",
    "recipe",
    "rank",
    "weight_only",
    "static_inputs",
    "activations",
    "fp8_attention",
    "gpu",
    "formats",
)
"""Options that say what --for decides."""


def add_card_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the fastest recipe for a card")
    group.add_argument(
        "--for",
        metavar="CARD",
        help="choose the number formats that are fastest on a card, such as 4090 or RTX 3060, with --engine rtx as "
        "compiled engines, else in the torch backend, of those that fit into its memory; prints the plan first",
    )
    group.add_argument(
        "--fidelity",
        type=decibels,
        metavar="DB",
        help="least expected signal-to-noise ratio of the denoiser's velocity to the 16-bit model's (default: 25)",
    )


def decibels(text: str) -> float:
    """A number of decibels."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of decibels from 0 to 100")
    return value


def card_of(options: argparse.Namespace) -> str | None:
    """What --for names."""
    name: str | None = getattr(options, "for")
    return name


def check_card_flags(options: argparse.Namespace) -> None:
    """Compiles engines for the card unless the user names others.

    Raises:
        KontextError: unknown, or flags that cannot be combined.
    """
    name = card_of(options)
    if name is None:
        if options.fidelity is not None:
            raise KontextError("--fidelity only applies with --for")
        return
    from ...quant.cards import find_card

    card = find_card(name)
    given = [
        f"--{option.replace('_', '-')}" for option in DECIDED if getattr(options, option) not in (None, False)
    ]
    if options.quantization:
        given.append(f"--{options.quantization}")
    if given:
        raise KontextError(f"--for cannot be combined with {given[0]}: it decides every layer's format")
    if options.compute == "fp32":
        raise KontextError("--for plans for tensor cores, and --fp32 does not use them: leave it out")
    if options.engine == "tensorrt":
        raise KontextError("--for plans for --engine rtx, or without --engine for the torch backend")
    if options.engine is not None and options.target is None:
        options.target = engine_target(card.capability)


def card_plan(options: argparse.Namespace, config: KontextConfig, calibrated: bool) -> CardPlan:
    """The plan that the flags ask for; needs the model's sizes and no weight.

    Raises:
        KontextError: nothing fits, or nothing is within the fidelity.
    """
    from ...quant.cards import find_card
    from ...quant.sensitivity import Sensitivity
    from ...quant.speed import ENGINE, TORCH
    from ..calibration.fastest import FIDELITY, fastest
    from .plan_flags import workload

    return fastest(
        config,
        find_card(card_of(options) or ""),
        TORCH if options.engine is None else ENGINE,
        workload(options, config),
        options.compute,
        FIDELITY if options.fidelity is None else options.fidelity,
        calibrated,
        None if options.sensitivity is None else Sensitivity.load(options.sensitivity),
    )
