"""The edit that cards are planned for, from flags that two benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...quant.memory import Workload
from ...quant.sensitivity import Sensitivity
from ..flags import at_least

SIDE = 1024
"""Pixels of FLUX.1 Kontext's square."""


def add_planned_edit_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--references", type=int, default=1, help="reference pictures (1)")
    parser.add_argument("--batch", type=int, default=1, help="edits at a time (1)")
    parser.add_argument(
        "--sensitivity", type=Path, metavar="FILE", help="a sensitivity report for the full model"
    )


def planned_edit(arguments: argparse.Namespace) -> tuple[Workload, Sensitivity | None]:
    """The edit, and what formats lose by a report if one is named.

    Raises:
        KontextError: it is less than an edit, or the report cannot be read.
    """
    at_least(arguments, references=0, batch=1)
    report = None if arguments.sensitivity is None else Sensitivity.load(arguments.sensitivity)
    return Workload(SIDE, SIDE, arguments.references, arguments.batch), report
