"""How FLUX.1 Kontext would fit on cards of 8 to 32 GB: the planner's plans, as a table and a plot.

Nothing is measured: plans follow from the model's shapes, a sensitivity report if there is one, and the memory model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...export.calibration.plan import COMPUTE, MemoryPlan, make_plan
from ...export.cli.figures import new_figure, save_figure
from ...export.cli.plan_text import TITLES, render_plan, signal_to_noise
from ...model.config import KontextConfig
from ...quant.gpus import find_target
from ...quant.memory import Workload
from ...quant.sensitivity import Sensitivity
from ...runtime.units import parse_bytes
from ..report import Table, finish
from .planned_edit import add_planned_edit_flags, planned_edit

CARDS = ("8GB", "12GB", "16GB", "24GB", "32GB")

PLOT = "plans.png"

COMPONENTS = {
    "weights": "#4878a8",
    "activations": "#e0a050",
    "inputs and outputs": "#8fb98a",
    "workspace": "#b07aa1",
    "context": "#a0a0a0",
}
"""Component of a stage's peak, by its title → its colour."""

KEYS = dict(zip(COMPONENTS, ("weights", "activations", "held", "workspace", "overhead"), strict=True))
"""Title → key of the component in the JSON."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", default="sm_89", help="an architecture or a card's name (sm_89)")
    add_planned_edit_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    made = make_plans(arguments.gpu, *planned_edit(arguments))
    for plan in made:
        print(render_plan(plan), end="\n\n")
    result = to_json(made)
    finish(result, tables(result), footer(result), arguments.json)


def make_plans(gpu: str, work: Workload, report: Sensitivity | None = None) -> list[MemoryPlan]:
    """A plan for each of `CARDS`. Raises KontextError for a GPU that is not known, or a report that does not fit."""
    target = find_target(gpu)
    return [make_plan(KontextConfig(), parse_bytes(card), target, work, report=report) for card in CARDS]


def to_json(made: list[MemoryPlan]) -> dict[str, Any]:
    first = made[0]
    return {
        "what": "plans",
        "model": first.model,
        "work": str(first.work),
        "compute": first.compute,
        "plans": [plan.as_json() for plan in made],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """A row per card: every stage's peak, the layers in each format, and the expected signal-to-noise ratio."""
    stages = list(result["plans"][0]["stages"])
    rows = []
    for plan in result["plans"]:
        chosen = {name: formats(stage, result["compute"]) for name, stage in plan["stages"].items()}
        rows.append(
            [
                f"{plan['budget'] / 1e9:g} GB",
                *(f"{stage['peak'] / 1e9:.2f}" for stage in plan["stages"].values()),
                chosen["transformer"],
                chosen["text_encoder_2"],
                signal_to_noise(plan["velocity_error"]),
            ]
        )
    header = ["card", *(f"{TITLES[name]} [GB]" for name in stages), "transformer in", "T5 in", "expected SNR"]
    return [Table(header, rows)]


def formats(stage: dict[str, Any], compute: str) -> str:
    """How many of a stage's layers are in each format, those with the most bytes first."""
    counts = sorted(stage["formats"].items(), key=lambda item: -item[1]["bytes"])
    return ", ".join(f"{count['layers']} {compute if name == COMPUTE else name}" for name, count in counts)


def footer(result: dict[str, Any]) -> str:
    target = result["plans"][0]["target"]
    return f"{result['model']} on {target}: {result['work']}, computing in {result['compute']}. Planned, not run."


def draw_plans(result: dict[str, Any], path: Path) -> None:
    """Stacked bars for each card: the components of every stage's peak, under the line of the budget.

    Raises:
        KontextError: matplotlib is missing, or the file cannot be written.
    """
    plans = result["plans"]
    figure = new_figure((13, 4.6))
    axes = figure.subplots(1, len(plans), sharey=True)
    for axis, plan in zip(axes, plans, strict=True):
        names = [TITLES[name] for name in plan["stages"]]
        bottom = [0.0] * len(names)
        for title, colour in COMPONENTS.items():
            heights = [stage[KEYS[title]] / 1e9 for stage in plan["stages"].values()]
            axis.bar(names, heights, bottom=bottom, color=colour, label=title, zorder=2)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
        axis.axhline(plan["budget"] / 1e9, color="#c03030", linewidth=1.2, linestyle="--", label="budget")
        expected = signal_to_noise(plan["velocity_error"])
        axis.set_title(
            f"{plan['budget'] / 1e9:g} GB · {'SNR ' * expected.endswith('dB')}{expected}", fontsize=10
        )
        axis.tick_params(axis="x", rotation=90, labelsize=8)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("peak of the stage [GB]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    target = plans[0]["target"]
    figure.suptitle(f"{result['model']} on {target}: {result['work']}", fontsize=11)
    save_figure(figure, path)
