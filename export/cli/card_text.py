"""A plan for a card as text: every recipe with its time, memory and fidelity, and which is chosen."""

from __future__ import annotations

from ...quant.speed import ENGINE, TORCH
from ..calibration.fastest import Candidate, CardPlan
from .plan_text import render_plan, signal_to_noise

EXECUTORS = {ENGINE: "TensorRT for RTX", TORCH: "the torch backend"}


def render_card_plan(found: CardPlan) -> str:
    """The table of recipes, then the chosen one's stages, as lines of text."""
    card, rows = found.card, [["recipe", "step [ms]", "peak [GB]", "expected", ""]]
    rows += [cells(each) for each in found.candidates]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    title = (
        f"{found.plan.model} on {card.name} ({card.memory >> 30} GB) with {EXECUTORS[found.executor]}: "
        f"{found.plan.work}; planned, not run"
    )
    lines = [title]
    for row in rows:
        shown = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:4], widths[1:], strict=True)),
        ]
        lines.append("  " + "  ".join([*shown, row[4]]).rstrip())
    lines.append(
        f"chosen: {found.chosen}; times are the least that the card's published rates and bandwidth allow\n"
    )
    return "\n".join(lines) + "\n" + render_plan(found.plan)


def cells(candidate: Candidate) -> list[str]:
    plan = candidate.plan
    return [
        candidate.flags,
        "-" if candidate.seconds is None else f"{1e3 * candidate.seconds:,.1f}",
        "-" if plan is None else f"{plan.peak / 1e9:.2f}",
        "-" if plan is None else signal_to_noise(plan.error),
        candidate.verdict or "chosen",
    ]
