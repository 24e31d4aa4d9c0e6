"""Plots a sensitivity report: layers by depth, one line per number format."""

from __future__ import annotations

from pathlib import Path

from ...decibels import decibels
from ...quant.sensitivity import METHODS, Sensitivity
from .figures import new_figure, save_figure

TITLES = {
    "text_encoder": "CLIP",
    "text_encoder_2": "T5",
    "modulation": "modulation",
    "transformer": "transformer",
}


def short_name(weight: str) -> str:
    """A layer's name without the prefix that all layers of its network share."""
    for prefix in ("text_model.encoder.layers.", "encoder.block."):
        weight = weight.removeprefix(prefix)
    return weight.removesuffix(".weight")


def draw_sensitivity(report: Sensitivity, path: Path) -> None:
    """Writes the plot in the format of the path's ending (png, svg, pdf).

    Raises:
        KontextError: matplotlib is missing or does not know the format, or the file cannot be written.
    """
    networks = [name for name in TITLES if report.layers.get(name)]
    widths = [max(len(report.layers[name]), 8) for name in networks]
    figure = new_figure((min(2 + 0.17 * sum(widths), 24), 6.2))
    axes = figure.subplots(1, len(networks), sharey=True, width_ratios=widths, squeeze=False)[0]
    for axis, network in zip(axes, networks, strict=True):
        layers = report.layers[network]
        for option in report.options:
            points = [
                (position, decibels(1, layer.errors[option]))
                for position, layer in enumerate(layers.values())
                if option in layer.errors
            ]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=0.8, label=option)
        axis.set_title(TITLES[network], fontsize=11)
        axis.grid(alpha=0.25)
        axis.margins(x=0.6 / len(layers))
        every = max(1, len(layers) // 40)
        names = [short_name(weight) for weight in layers]
        axis.set_xticks(range(0, len(layers), every), names[::every], rotation=90, fontsize=7.5)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("SNR of the velocity [dB]; lower: the layer is more sensitive")
    axes[0].legend(loc="best", frameon=False, title="quantized to")
    how = "measured" if report.method == "velocity" else METHODS[report.method]
    figure.suptitle(f"{report.model}: SNR of the velocity with one layer quantized, {how}", fontsize=12)
    save_figure(figure, path)
