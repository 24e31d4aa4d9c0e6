"""The fidelity benchmark's plot: velocity SNR by bits per weight, of our bundles and the peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...export.cli.figures import new_figure, save_figure
from .tables import titles

PLOT = "fidelity.png"

GROUPS = {
    "bundles": ("kontext-export", "#0072b2", "o"),
    "peers": ("other libraries, weights only", "#d55e00", "s"),
}
"""Group of entries → title, colour and marker."""

GAP = 1.5
"""Bits per weight between two neighbours from which on the axis is broken."""

LINE = 15
"""Pixels between the baselines of two labels."""


@dataclass(frozen=True)
class Point:
    label: str
    group: str
    bits: float
    snr: float


def plot_link(result: dict[str, Any]) -> str:
    """The plot as a Markdown image, for documents in docs/."""
    return (
        f"![Velocity SNR by bits per weight, ours and other libraries', of {result['model']}](images/{PLOT})"
    )


def points(result: dict[str, Any]) -> list[Point]:
    """The quantized entries; without those that are as good as equal to the reference."""
    names = titles(result)
    return [
        Point(names[name], group, entry["bits_per_weight"], entry["velocity_snr"])
        for group in GROUPS
        for name, entry in result.get(group, {}).items()
        if entry["bits_per_weight"] is not None and entry["velocity_snr"] < 200
    ]


def panels(every: Sequence[Point]) -> list[list[Point]]:
    """The points by bits, split where the axis is broken."""
    result: list[list[Point]] = []
    for point in sorted(every, key=lambda each: each.bits):
        if not result or point.bits - result[-1][-1].bits > GAP:
            result.append([])
        result[-1].append(point)
    return result


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """Moves ascending `heights` as little as possible, so that neighbours are at least `distance` apart.

    Neighbours that are too close form a block, which is centred on the mean of its members.
    """
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and start(blocks[-1], distance) < end(blocks[-2], distance) + distance:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [start(block, distance) + distance * index for block in blocks for index in range(len(block))]


def start(block: Sequence[float], distance: float) -> float:
    return sum(block) / len(block) - distance * (len(block) - 1) / 2


def end(block: Sequence[float], distance: float) -> float:
    return start(block, distance) + distance * (len(block) - 1)


def draw_fidelity(result: dict[str, Any], path: Path) -> None:
    """Draws the plot as a PNG.

    Raises:
        KontextError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure((9, 5.6))
    split = panels(points(result))
    widths = [max(panel[-1].bits - panel[0].bits, 0.4) for panel in split]
    axes = figure.subplots(
        1, len(split), sharey=True, squeeze=False, width_ratios=[width + 1.3 for width in widths]
    )[0]
    for axis, panel in zip(axes, split, strict=True):
        for group, (title, colour, marker) in GROUPS.items():
            members = [point for point in panel if point.group == group]
            axis.scatter(
                [point.bits for point in members],
                [point.snr for point in members],
                color=colour,
                marker=marker,
                label=title,
                edgecolors="white",
                s=48,
                zorder=3,
            )
        axis.set_xlim(panel[0].bits - 0.2, panel[-1].bits + 1.1)
        axis.set_xticks([tick / 2 for tick in range(int(2 * panel[0].bits), int(2 * panel[-1].bits + 1.5))])
        axis.grid(alpha=0.25)
        axis.tick_params(length=0)
        for side in ("top", "right", *(() if axis is axes[0] else ("left",))):
            axis.spines[side].set_visible(False)
    # Where the axis is broken: at the right end of all but the last part, at the left end of all but the first.
    for axis, end in [*((each, 1) for each in axes[:-1]), *((each, 0) for each in axes[1:])]:
        axis.plot(
            [end],
            [0],
            marker=[(-1, -2), (1, 2)],
            markersize=8,
            color="k",
            clip_on=False,
            transform=axis.transAxes,
        )
    axes[0].set_ylabel("SNR of the velocity along the reference's trajectory [dB]")
    axes[0].legend(loc="upper left", frameon=False)
    figure.supxlabel("bits per weight of the quantized layers, scales and branches included", fontsize=10)
    figure.suptitle(f"{result['model']}: SNR of the velocity against fp32", fontsize=12)
    axes[0].margins(y=0.08)
    figure.draw_without_rendering()  # fixes the axes' places, which the labels' follow from
    for axis, panel in zip(axes, split, strict=True):
        ordered = sorted(panel, key=lambda point: point.snr)
        heights = spread([axis.transData.transform((point.bits, point.snr))[1] for point in ordered], LINE)
        for point, height in zip(ordered, heights, strict=True):
            level = axis.transData.inverted().transform((0, height))[1]
            axis.annotate(
                point.label,
                (point.bits, point.snr),
                xytext=(panel[-1].bits + 0.25, level),
                va="center",
                fontsize=8.5,
                color=GROUPS[point.group][1],
                arrowprops={"arrowstyle": "-", "color": "#b0b0b0", "linewidth": 0.6, "shrinkB": 4},
            )
    save_figure(figure, path)
