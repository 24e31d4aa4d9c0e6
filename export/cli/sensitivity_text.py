"""A sensitivity report as text: the most sensitive layers, and whether errors add up."""

from __future__ import annotations

from ...decibels import decibels
from ...quant.sensitivity import METHODS, Sensitivity

MOST = 10
"""Most layers to list."""


def render_sensitivity(report: Sensitivity) -> str:
    """The report as lines of text; layers are ranked by their error in the last format."""
    option = report.options[-1]
    count = sum(map(len, report.layers.values()))
    lines = [f"{report.model}: {count} layers in {', '.join(report.options)}; {METHODS[report.method]}"]
    if report.about:
        about = report.about
        lines.append(f"  on {about['count']} edits of {about['samples']}")
    pictures = {(each["network"], each["weight"]): each["psnr"] for each in report.pictures}
    ranked = sorted(
        (
            (layer.errors.get(option, 0.0), network, weight)
            for network, layers in report.layers.items()
            for weight, layer in layers.items()
        ),
        reverse=True,
    )[:MOST]
    lines.append(
        f"  velocity's signal to noise with one layer in {option}, and the picture's PSNR, lowest first:"
    )
    for error, network, weight in ranked:
        psnr = f"{pictures[network, weight]:6.1f} dB" if (network, weight) in pictures else ""
        lines.append(
            f"    {decibels(1, error):6.1f} dB  {psnr:9}  {network}: {weight.removesuffix('.weight')}"
        )
    for name, sums in report.sums.items():
        lines.append(
            f"  all layers in {name}: {decibels(1, sums['whole']):.1f} dB measured, {decibels(1, sums['sum']):.1f} dB "
            "as the sum of the layers' errors"
        )
    return "\n".join(lines)
