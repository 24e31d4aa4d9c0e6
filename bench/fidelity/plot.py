"""The fidelity benchmark's plot: velocity SNR with its interval by bits per weight, of our bundles and the peers, and
the floors of our formats as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...export.cli.figures import new_figure, save_figure
from .tables import UNKNOWN, entries, floor_title, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT = "fidelity.png"

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9", "#5d3a9b", "#444444", "#b8860b")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h")
"""One of each for every class, in the classes' order (colours that are told apart with colour blindness first)."""

GAP = 1.5
"""Bits per weight between two neighbours from which on the axis is broken."""

LINE = 13
"""Pixels between the baselines of two labels."""


@dataclass(frozen=True)
class Point:
    """An entry; `low` and `high` are its interval's ends, the value itself without one."""

    label: str
    scheme: str
    ours: bool
    bits: float
    snr: float
    low: float
    high: float


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str


def plot_link(result: dict[str, Any]) -> str:
    """The plot as a Markdown image, for documents in docs/."""
    return (
        f"![Velocity SNR by bits per weight, ours and other libraries', of {result['model']}](images/{PLOT})"
    )


def points(result: dict[str, Any]) -> list[Point]:
    """The quantized entries, by class; without those that are as good as equal to the reference."""
    names = titles(result)
    found = []
    for name, entry in entries(result).items():
        snr, bits = entry["velocity_snr"], entry["bits_per_weight"]
        if bits is not None and snr < 200:
            low, high = entry.get("intervals", {}).get("velocity_snr", (snr, snr))
            ours = name in result["bundles"]
            found.append(Point(names[name], entry.get("scheme", UNKNOWN), ours, bits, snr, low, high))
    return found


def styles(every: Sequence[Point]) -> dict[str, Style]:
    """Class → how its points are drawn."""
    schemes = dict.fromkeys(point.scheme for point in every)
    return {
        scheme: Style(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for index, scheme in enumerate(schemes)
    }


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
    figure = new_figure((10, 8))
    every = points(result)
    split = panels(every)
    widths = [max(panel[-1].bits - panel[0].bits, 0.4) for panel in split]
    axes = figure.subplots(
        1, len(split), sharey=True, squeeze=False, width_ratios=[width + 1.3 for width in widths]
    )[0]
    drawn = styles(every)
    for axis, panel in zip(axes, split, strict=True):
        draw_panel(axis, panel, drawn)
        for side in ("top", "right", *(() if axis is axes[0] else ("left",))):
            axis.spines[side].set_visible(False)
    draw_floors(axes, split, result)
    break_axis(axes)
    axes[0].set_ylabel("SNR of the velocity along the reference's trajectory [dB]")
    draw_legend(axes[0], drawn)
    figure.supxlabel("bits per weight of the quantized layers, scales and branches included", fontsize=10)
    figure.suptitle(f"{result['model']}: SNR of the velocity against fp32", fontsize=12)
    axes[0].margins(y=0.08)
    figure.draw_without_rendering()  # fixes the axes' places, which the labels' follow from
    for axis, panel in zip(axes, split, strict=True):
        draw_labels(axis, panel, drawn)
    save_figure(figure, path)


def draw_panel(axis: Axes, panel: Sequence[Point], drawn: dict[str, Style]) -> None:
    """The points of one part of the axis: filled for our bundles, hollow for peers."""
    for point in panel:
        style = drawn[point.scheme]
        axis.errorbar(
            point.bits,
            point.snr,
            yerr=[[point.snr - point.low], [point.high - point.snr]],
            fmt=style.marker,
            color=style.colour,
            markerfacecolor=style.colour if point.ours else "white",
            markersize=7,
            capsize=2.5,
            elinewidth=1,
            zorder=3,
        )
    axis.set_xlim(panel[0].bits - 0.2, panel[-1].bits + 1.4)
    axis.set_xticks([tick / 2 for tick in range(int(2 * panel[0].bits), int(2 * panel[-1].bits + 1.5))])
    axis.grid(alpha=0.25)
    axis.tick_params(length=0)


def draw_floors(axes: Sequence[Axes], split: Sequence[Sequence[Point]], result: dict[str, Any]) -> None:
    """A dashed line across the part of the axis where the bundle is, for each part rounded alone."""
    for entry in result.get("floors", {}).values():
        bits, snr = entry["bits_per_weight"], entry["velocity_snr"]
        if bits is None or snr >= 200:
            continue
        axis = next(
            (each for each, panel in zip(axes, split, strict=True) if bits <= panel[-1].bits), axes[-1]
        )
        axis.axhline(snr, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        left = axis.get_xlim()[0]
        axis.annotate(
            floor_title(entry),
            (left, snr),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=7.5,
            color="#555555",
        )


def break_axis(axes: Sequence[Axes]) -> None:
    """Marks where it is broken: at the right end of all but the last part, at the left end of all but the first."""
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


def draw_legend(axis: Axes, drawn: dict[str, Style]) -> None:
    """The classes; filled and hollow."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=style.marker, color=style.colour, label=scheme)
        for scheme, style in drawn.items()
    ]
    handles += [
        Line2D([], [], linestyle="", marker="o", color="k", markerfacecolor=face, label=label)
        for face, label in (("k", "kontext-export"), ("white", "other libraries"))
    ]
    axis.legend(handles=handles, loc="upper left", frameon=False, fontsize=8.5)


def draw_labels(axis: Axes, panel: Sequence[Point], drawn: dict[str, Style]) -> None:
    """The points' names to the right of the part, apart from each other, joined with their points."""
    ordered = sorted(panel, key=lambda point: point.snr)
    heights = spread([axis.transData.transform((point.bits, point.snr))[1] for point in ordered], LINE)
    for point, height in zip(ordered, heights, strict=True):
        level = axis.transData.inverted().transform((0, height))[1]
        axis.annotate(
            point.label,
            (point.bits, point.snr),
            xytext=(panel[-1].bits + 0.25, level),
            va="center",
            fontsize=8,
            fontweight="bold" if point.ours else "normal",
            color=drawn[point.scheme].colour,
            arrowprops={"arrowstyle": "-", "color": "#b0b0b0", "linewidth": 0.6, "shrinkB": 4},
        )
