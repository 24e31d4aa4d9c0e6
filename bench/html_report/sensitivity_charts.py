"""Charts of a sensitivity report: every layer's error in every format."""

from __future__ import annotations

from typing import Any

from ...decibels import decibels
from ...export.cli.sensitivity_plot import TITLES, short_name
from ...quant.sensitivity import METHODS, Sensitivity
from ..report import Table
from .charts import INK, SERIES, SOFT, Chart, Key

MOST_ROWS = 20


def sensitivity_charts(report: Sensitivity) -> list[Chart]:
    """A panel for each network, a mark for each layer and format."""
    networks = [name for name in TITLES if report.layers.get(name)]
    colours = dict(zip(report.options, SERIES, strict=False))

    def draw(figure: Any, narrow: bool) -> None:
        every = figure.subplots(len(networks), 1, sharey=True, squeeze=False)[:, 0]
        for axes, network in zip(every, networks, strict=True):
            layers = report.layers[network]
            for option, colour in colours.items():
                places = [place for place, layer in enumerate(layers.values()) if option in layer.errors]
                found = [layer.errors[option] for layer in layers.values() if option in layer.errors]
                axes.plot(
                    places,
                    [decibels(1, each) for each in found],
                    "o-",
                    color=colour,
                    markersize=3.2,
                    linewidth=0.7,
                )
            every_nth = -(-len(layers) // (6 if narrow else 14))
            names = [short_name(weight) for weight in layers]
            axes.set_xticks(
                range(0, len(layers), every_nth), names[::every_nth], rotation=24, ha="right", fontsize=9
            )
            axes.set_title(TITLES[network], loc="left", color=INK)
            axes.margins(x=0.02)
        figure.supylabel("SNR of the velocity [dB]", fontsize=12, color=SOFT)

    ranked = sensitive_layers(report)
    table = Table(
        ["most sensitive layers", *(f"{option} [dB]" for option in report.options)],
        [
            [
                f"{TITLES.get(network, network)}: {short_name(weight)}",
                *(
                    f"{decibels(1, errors[option]):.1f}" if option in errors else "-"
                    for option in report.options
                ),
            ]
            for network, weight, errors in ranked
        ],
    )
    first = f"{TITLES.get(ranked[0][0], ranked[0][0])}: {short_name(ranked[0][1])}" if ranked else "none"
    how = "measured" if report.method == "velocity" else METHODS[report.method]
    return [
        Chart(
            "layers",
            "SNR of the velocity with one layer quantized",
            f"By layer, {how}. The most sensitive layer is {first}.",
            table,
            draw,
            210 * len(networks),
            [Key(option, colour) for option, colour in colours.items()],
            "Lower: the layer is more sensitive.",
            full=True,
        )
    ]


def sensitive_layers(report: Sensitivity) -> list[tuple[str, str, dict[str, float]]]:
    """(network, weight, errors by option) of the most sensitive layers in the last option, the worst first."""
    last = report.options[-1]
    every = [
        (network, weight, layer.errors)
        for network, layers in report.layers.items()
        for weight, layer in layers.items()
    ]
    return sorted(every, key=lambda each: -each[2].get(last, 0))[:MOST_ROWS]


def sum_tables(report: Sensitivity) -> list[Table]:
    """All layers quantized together, beside the sum of the errors of each alone."""
    rows = [
        [option, f"{decibels(1, sums['whole']):.1f}", f"{decibels(1, sums['sum']):.1f}"]
        for option, sums in report.sums.items()
    ]
    return [Table(["all layers in", "measured [dB]", "sum of the layers' errors [dB]"], rows)] if rows else []
