"""Draws a sensitivity report: layers by depth, one line for each number format."""

from __future__ import annotations

from pathlib import Path

from ...decibels import decibels
from ...errors import KontextError
from ...quant.sensitivity import METHODS, Sensitivity

TITLES = {
    "text_encoder": "CLIP",
    "text_encoder_2": "T5",
    "modulation": "modulation",
    "transformer": "transformer",
}


def short_name(weight: str) -> str:
    """A layer's name without what all of its network's have in common."""
    for part in ("text_model.encoder.layers.", "encoder.block."):
        weight = weight.removeprefix(part)
    return weight.removesuffix(".weight")


def draw(report: Sensitivity, path: Path) -> None:
    """Writes the plot; the file's ending says as what (png, svg, pdf).

    Raises:
        KontextError: matplotlib is missing, cannot write such a file, or the folder is not there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise KontextError("--plot needs matplotlib: pip install 'kontext-export[export]'") from None
    networks = [name for name in TITLES if report.layers.get(name)]
    widths = [max(len(report.layers[name]), 8) for name in networks]
    figure = Figure(figsize=(min(6 + 0.09 * sum(widths), 24), 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(networks), sharey=True, width_ratios=widths, squeeze=False)[0]
    for axis, network in zip(axes, networks, strict=True):
        layers = report.layers[network]
        for option in report.options:
            points = [
                (position, decibels(1, layer.errors[option]))
                for position, layer in enumerate(layers.values())
                if option in layer.errors
            ]
            axis.plot(*zip(*points, strict=True), marker=".", markersize=5, linewidth=0.9, label=option)
        axis.set_title(TITLES[network], fontsize=10)
        axis.grid(alpha=0.3)
        every = max(1, len(layers) // 40)
        names = [short_name(weight) for weight in layers]
        axis.set_xticks(range(0, len(layers), every), names[::every], rotation=90, fontsize=5)
    axes[0].set_ylabel("signal to noise [dB]")
    axes[0].invert_yaxis()  # what hurts is on top
    axes[-1].legend(loc="best", fontsize=8)
    figure.suptitle(
        f"{report.model}: the velocity with one layer quantized, {METHODS[report.method]}", fontsize=11
    )
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as fault:
        raise KontextError(f"cannot draw {path}: {fault}") from None
