"""A sensitivity report as text: the most sensitive layers, and whether errors add up."""

from __future__ import annotations

from ...decibels import decibels
from ...quant.sensitivity import METHODS, Sensitivity

MOST = 10
"""Most layers to list."""


def render_sensitivity(report: Sensitivity) -> str:
    """The report as lines of text; layers are ranked by their error in the last format."""
    count = sum(map(len, report.layers.values()))
    lines = [f"{report.model}: {count} layers in {', '.join(report.options)}; {METHODS[report.method]}"]
    if report.about:
        about = report.about
        lines.append(f"  on {about['count']} edits of {about['samples']}")
    lines += ranked_layers(report)
    for name, sums in report.sums.items():
        lines.append(
            f"  all layers in {name}: {decibels(1, sums['whole']):.1f} dB measured, {decibels(1, sums['sum']):.1f} dB "
            "as the sum of the layers' errors"
        )
    return "\n".join(lines)


def ranked_layers(report: Sensitivity) -> list[str]:
    """A line for each of the most sensitive layers, with a column for each format, and the picture's PSNR if any was
    measured."""
    last = report.options[-1]
    pictures = {(each["network"], each["weight"]): each["psnr"] for each in report.pictures}
    ranked = sorted(
        (
            (-layer.errors.get(last, 0.0), network, weight)
            for network, layers in report.layers.items()
            for weight, layer in layers.items()
        ),
    )[:MOST]
    also = f", and the picture's PSNR in {last}" if pictures else ""
    lines = [f"  velocity's signal to noise [dB] with one layer quantized{also}, lowest in {last} first:"]
    columns = [*report.options, *(["picture"] if pictures else [])]
    lines.append("    " + "".join(f"{name:>9}" for name in columns))
    for _, network, weight in ranked:
        errors = report.layers[network][weight].errors
        cells = [f"{decibels(1, errors[name]):.1f}" if name in errors else "-" for name in report.options]
        if pictures:
            cells.append(f"{pictures[network, weight]:.1f}" if (network, weight) in pictures else "-")
        row = "".join(f"{cell:>9}" for cell in cells)
        lines.append(f"    {row}  {network}: {weight.removesuffix('.weight')}")
    return lines
