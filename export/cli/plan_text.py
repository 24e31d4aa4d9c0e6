"""A memory plan as text: the peak and formats of every stage, and the expected quality."""

from __future__ import annotations

from ...decibels import decibels
from ...quant.sensitivity import METHODS
from ...runtime.units import gigabytes
from ..calibration.plan import COMPUTE, MemoryPlan

TITLES = {
    "text_encoder": "CLIP",
    "text_encoder_2": "T5",
    "vae_encoder": "VAE encoder",
    "modulation": "modulation",
    "transformer": "transformer",
    "vae_decoder": "VAE decoder",
}


def signal_to_noise(error: float) -> str:
    """The velocity's signal-to-noise ratio as text, from the relative energy of its error."""
    return f"{decibels(1, error):.1f} dB" if error > 0 else "nothing lost"


def render_plan(plan: MemoryPlan) -> str:
    """The plan as lines of text: a table of stages with their formats, and the expected quality."""
    header = ["stage", "weights", "activations", "other", "peak", "formats (layers)"]
    rows = []
    for stage in plan.stages:
        other = stage.demand.held + stage.demand.workspace + stage.demand.overhead
        formats = ", ".join(
            f"{plan.compute if name == COMPUTE else name} ({layers}, {gigabytes(size)})"
            for name, (layers, size) in sorted(stage.counts.items())
        )
        sizes = (stage.weights, stage.demand.activations, other, stage.peak)
        rows.append(
            [TITLES[stage.network], *(f"{size / 1e9:.2f}" for size in sizes), formats or plan.compute]
        )
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(5)]
    lines = [
        f"{plan.model} in {gigabytes(plan.budget)} on {plan.target.name}: {plan.work}, computing in {plan.compute} [GB]"
    ]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:5], widths[1:], strict=True)]
        lines.append("  " + "  ".join([*cells, row[5]]))
    lines.append(
        f"peak {gigabytes(plan.peak)} of {gigabytes(plan.budget)}; {gigabytes(plan.size)} of weights on disk"
    )
    lines.append(f"expected of the velocity: {fidelity(plan)}; {METHODS[plan.method]}")
    return "\n".join(lines)


def fidelity(plan: MemoryPlan) -> str:
    if plan.error <= 0:
        return "nothing lost"
    text = f"{signal_to_noise(plan.error)} signal to noise"
    if plan.bound > 0:
        text += f" (no plan gets above {signal_to_noise(plan.bound)})"
    return text
