"""FLUX.1 Kontext on cards of 8 to 32 GB: `python -m kontext.bench.memory.plans --json FILE --picture FILE --page FILE`.

Nothing is measured: the plans follow from the shapes, and this writes them down as a table and a picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...export.calibration.plan import COMPUTE, Plan, make_plan
from ...export.cli.plan_text import TITLES, render, signal_to_noise
from ...model.config import KontextConfig
from ...quant.gpus import find_target
from ...quant.memory import Workload
from ...quant.sensitivity import Sensitivity
from ...runtime.units import gigabytes, parse_bytes
from ..command_line import exit_code, module_parser
from ..report import Table, replace_section, write_json

CARDS = ("8GB", "12GB", "16GB", "24GB", "32GB")

PARTS = {
    "weights": "#4878a8",
    "activations": "#e0a050",
    "inputs and outputs": "#8fb98a",
    "workspace": "#b07aa1",
    "context": "#a0a0a0",
}
"""Of a stage's peak → the colour that it is drawn in."""


def plans(gpu: str, work: Workload, report: Sensitivity | None = None) -> list[Plan]:
    """A plan for each of `CARDS`."""
    target = find_target(gpu)
    return [make_plan(KontextConfig(), parse_bytes(card), target, work, report=report) for card in CARDS]


def table(made: list[Plan]) -> Table:
    """A row for each card: every stage's peak, the transformer's formats, and what is expected."""
    stages = [stage.network for stage in made[0].stages]
    rows = []
    for plan in made:
        peaks = [f"{stage.peak / 1e9:.2f}" for stage in plan.stages]
        chosen = {stage.network: formats(plan, stage.network) for stage in plan.stages}
        rows.append(
            [
                gigabytes(plan.budget).replace(".00", ""),
                *peaks,
                chosen["transformer"],
                chosen["text_encoder_2"],
                signal_to_noise(plan.error),
            ]
        )
    header = ["card", *(f"{TITLES[name]} [GB]" for name in stages), "transformer in", "T5 in", "expected SNR"]
    return Table(header, rows)


def formats(plan: Plan, network: str) -> str:
    """How many of a network's layers are in each format, those with most bytes first."""
    counts = next(stage.counts for stage in plan.stages if stage.network == network)
    names = sorted(counts.items(), key=lambda item: -item[1][1])
    return ", ".join(f"{layers} {plan.compute if name == COMPUTE else name}" for name, (layers, _) in names)


def draw(made: list[Plan], path: Path) -> None:
    """Stacked bars: for each card the parts of every stage's peak, under the line of its budget.

    Raises:
        KontextError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise KontextError("the picture needs matplotlib: pip install 'kontext-export[export]'") from None
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(made), sharey=True)
    for axis, plan in zip(axes, made, strict=True):
        names = [TITLES[stage.network] for stage in plan.stages]
        bottom = [0.0] * len(names)
        for part, colour in PARTS.items():
            heights = [part_bytes(stage)[part] / 1e9 for stage in plan.stages]
            axis.bar(names, heights, bottom=bottom, color=colour, label=part)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
        axis.axhline(plan.budget / 1e9, color="#c03030", linewidth=1.2, linestyle="--")
        lost = signal_to_noise(plan.error)
        axis.set_title(f"{plan.budget / 1e9:.0f} GB: {lost}", fontsize=10)
        axis.tick_params(axis="x", rotation=90, labelsize=8)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("peak of the stage [GB]")
    axes[-1].legend(fontsize=8)
    plan = made[0]
    figure.suptitle(
        f"{plan.model} on {plan.target.name}: {plan.work}; the budget is the dashed line", fontsize=11
    )
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as fault:
        raise KontextError(f"cannot draw {path}: {fault}") from None


def part_bytes(stage: Any) -> dict[str, int]:
    demand = stage.demand
    sizes = (stage.weights, demand.activations, demand.held, demand.workspace, demand.overhead)
    return dict(zip(PARTS, sizes, strict=True))


def run(options: argparse.Namespace) -> None:
    report = None if options.sensitivity is None else Sensitivity.load(options.sensitivity)
    made = plans(options.gpu, Workload(1024, 1024, options.references, options.batch), report)
    for plan in made:
        print(render(plan), end="\n\n")
    if options.json is not None:
        write_json(options.json, {"what": "plans", "plans": [plan.as_json() for plan in made]})
    if options.picture is not None:
        draw(made, options.picture)
    if options.page is not None:
        replace_section(options.page, "plans", table(made).markdown())


def main(arguments: list[str] | None = None) -> int:
    parser = module_parser("plans", __doc__)
    parser.add_argument("--gpu", default="sm_89", help="an architecture or a card (sm_89)")
    parser.add_argument("--references", type=int, default=1, help="(1)")
    parser.add_argument("--batch", type=int, default=1, help="(1)")
    parser.add_argument("--sensitivity", type=Path, metavar="FILE", help="a report for the full model")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw them there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="rewrite this page's section of plans")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
