"""Which recipe is fastest on cards that people own, as `kontext-export --for` plans it, by card and executor.

Nothing is measured: times are the least that each card's published rates and bandwidth allow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ...export.calibration.fastest import FIDELITY, fastest
from ...export.cli.card_flags import decibels
from ...export.cli.card_text import EXECUTORS, render_card_plan
from ...export.cli.plan_text import signal_to_noise
from ...model.config import KontextConfig
from ...quant.cards import find_card
from ...quant.memory import Workload
from ...quant.sensitivity import Sensitivity
from ...quant.speed import ENGINE
from ..report import Table, finish
from .planned_edit import add_planned_edit_flags, planned_edit

NAMES = "RTX 3060,RTX 4060 Ti 16GB,RTX 4070,RTX 4090,RTX 5070,RTX 5090"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cards", default=NAMES, metavar="LIST", help=f"names of cards ({NAMES})")
    parser.add_argument(
        "--fidelity",
        type=decibels,
        default=FIDELITY,
        metavar="DB",
        help=f"least expected ratio ({FIDELITY:g})",
    )
    add_planned_edit_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    work, report = planned_edit(arguments)
    result = plan_cards(arguments.cards.split(","), work, arguments.fidelity, report)
    finish(result, tables(result), footer(result), arguments.json)


def plan_cards(
    names: Sequence[str], work: Workload, least: float, report: Sensitivity | None = None
) -> dict[str, Any]:
    """A plan for each card with each executor, printed too.

    Raises:
        KontextError: a card is unknown, or nothing on it is within the fidelity.
    """
    plans = []
    for card in map(find_card, names):
        for executor in EXECUTORS:
            found = fastest(KontextConfig(), card, executor, work, least=least, report=report)
            print(render_card_plan(found), end="\n\n")
            plans.append(found.as_json())
    return {
        "what": "cards",
        "model": KontextConfig().name,
        "work": str(work),
        "fidelity": least,
        "plans": plans,
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """What is chosen for each card and executor; then every recipe's time in compiled engines, within the fidelity or
    not."""
    chosen = [
        [
            plan["card"],
            EXECUTORS[plan["executor"]],
            f"`{plan['chosen']}`",
            f"{plan['step_seconds']:.2f}",
            f"{plan['peak'] / 1e9:.2f}",
            signal_to_noise(plan["velocity_error"]),
        ]
        for plan in result["plans"]
    ]
    header = ["card", "with", "chosen", "step [s]", "peak [GB]", "expected SNR"]
    engines = [plan for plan in result["plans"] if plan["executor"] == ENGINE]
    rows = []
    for index, first in enumerate(engines[0]["candidates"] if engines else []):
        each = [plan["candidates"][index] for plan in engines]
        errors = [
            candidate["velocity_error"] for candidate in each if candidate["velocity_error"] is not None
        ]
        expected = signal_to_noise(errors[0]) if errors else "-"
        rows.append([f"`{first['flags']}`", expected, *map(time_of, each)])
    titles = ["step [s] in engines", "expected SNR", *(plan["card"] for plan in engines)]
    return [Table(header, chosen), Table(titles, rows)]


def time_of(candidate: dict[str, Any]) -> str:
    if candidate["step_seconds"] is None:
        return "-"
    beyond = " (memory)" if " needs " in candidate["verdict"] else ""
    return f"{candidate['step_seconds']:.2f}{beyond}"


def footer(result: dict[str, Any]) -> str:
    return (
        f"{result['model']}: {result['work']}, at least {result['fidelity']:g} dB expected, with a calibration. "
        "Planned from published rates and shapes, not run."
    )
