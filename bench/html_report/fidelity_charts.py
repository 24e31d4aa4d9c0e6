"""Charts of the fidelity benchmark and of those that measure with it: error by size, by speed, and step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..fidelity.picture_metrics import METRICS
from ..fidelity.plot import spread
from ..fidelity.tables import entries, number, titles
from ..registry import Result
from ..report import Table
from .charts import CARD, INK, SERIES, SOFT, Chart, Key, shortened, tipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PEERS, EDGE = SERIES[0], SERIES[1], SOFT
LOSSLESS = 199
"""dB from which on an entry is as good as equal to the reference: it has no place on the axis."""

LINE = 15
"""Pixels between two labels."""

SNR = "velocity_snr"
LABELS = {SNR: "SNR of the velocity [dB]", "psnr": "PSNR of the picture [dB]"}


@dataclass(frozen=True)
class Point:
    """An entry of a frontier; `low` and `high` are its interval's ends, if it has one."""

    label: str
    ours: bool
    x: float
    y: float
    low: float | None = None
    high: float | None = None


def interval(entry: dict[str, Any], metric: str) -> tuple[float, float] | None:
    """The interval of a metric's mean, where the result has one."""
    found = entry.get("intervals")
    ends = found.get(metric) if isinstance(found, dict) else None
    if isinstance(ends, dict):
        ends = [ends.get("low"), ends.get("high")]
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends):
        return float(ends[0]), float(ends[1])
    return None


def best(points: Sequence[Point]) -> list[Point]:
    """The frontier: no other point is as small and better. From the smallest on."""
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def points_by_size(result: Result, metric: str) -> list[Point]:
    names = titles(result)
    found = []
    for name, entry in entries(result).items():
        bits, value = entry["bits_per_weight"], entry.get(metric)
        if bits is None or value is None or entry[SNR] >= LOSSLESS:
            continue
        ends = interval(entry, metric) or (None, None)
        found.append(Point(names[name], name in result["bundles"], bits, value, *ends))
    return found


def frontier_chart(name: str, title: str, points: Sequence[Point], x: str, y: str, says: str) -> Chart:
    """Error by a cost. The best for their cost are joined by a line; ours are labelled, peers where they are best."""

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        joined = best(points)
        steps = [point.x for point in joined], [point.y for point in joined]
        axes.plot(*steps, color=EDGE, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        for point in points:
            draw_point(axes, point, x)
        axes.margins(x=0.3 if narrow else 0.16, y=0.12)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        figure.draw_without_rendering()  # fixes the axes' place, which the labels' follow from
        label_points(axes, [point for point in points if point.ours or (point in joined and not narrow)])

    shown = any(point.low is not None for point in points)
    rows = [
        [
            point.label,
            f"{point.x:.2f}",
            f"{point.y:.1f}",
            *(["-" if point.low is None else f"{point.low:.1f} – {point.high:.1f}"] if shown else []),
        ]
        for point in sorted(points, key=lambda each: (each.x, -each.y))
    ]
    header = ["weights", x, y, *(["interval"] if shown else [])]
    keys = [Key("kontext-export", OURS, "circle")]
    if not all(point.ours for point in points):
        keys.append(Key("other libraries", PEERS, "square"))
    keys.append(Key("best for their cost", SOFT, "dash"))
    return Chart(name, title, says, Table(header, rows), draw, 340, keys)


def draw_point(axes: Axes, point: Point, x: str) -> None:
    colour = OURS if point.ours else PEERS
    if point.low is not None and point.high is not None:
        axes.plot([point.x, point.x], [point.low, point.high], color=colour, linewidth=1.2, alpha=0.7)
    (mark,) = axes.plot(
        [point.x],
        [point.y],
        "o" if point.ours else "s",
        color=colour,
        markersize=8 if point.ours else 6.5,
        markeredgecolor=CARD,
        markeredgewidth=1,
        zorder=4 if point.ours else 3,
        clip_on=False,
    )
    tipped(mark, f"{point.label}: {point.y:.1f} dB, {point.x:.2f} {x}")


def label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Labels to the right of the points, moved apart where they would meet."""
    placed = [(axes.transData.transform((point.x, point.y)), point) for point in points]
    scale = axes.figure.dpi / 72
    groups: list[list[tuple[Any, Point]]] = []
    for place, point in sorted(placed, key=lambda each: each[0][0]):
        if groups and place[0] - groups[-1][0][0][0] < 110 * scale:
            groups[-1].append((place, point))
        else:
            groups.append([(place, point)])
    for group in groups:
        group.sort(key=lambda each: each[0][1])
        heights = spread([place[1] for place, _ in group], LINE * scale)
        for (place, point), height in zip(group, heights, strict=True):
            axes.annotate(
                shortened(point.label),
                (point.x, point.y),
                xytext=(9, (height - place[1]) / scale),
                textcoords="offset points",
                va="center",
                fontsize=11,
                color=INK if point.ours else SOFT,
            )


def size_charts(result: Result) -> list[Chart]:
    """Error by bits per weight: of the velocity, and of the picture."""
    charts = []
    for metric, y in LABELS.items():
        points = points_by_size(result, metric)
        if len(points) > 1:
            joined = ", ".join(
                f"{point.label} with {point.x:.2f} bits at {point.y:.1f} dB" for point in best(points)
            )
            what = "velocity" if metric == SNR else "picture"
            charts.append(
                frontier_chart(
                    f"size-{metric.replace('_', '-')}",
                    f"Error of the {what} by size",
                    points,
                    "bits per weight",
                    y,
                    f"{y} by bits per weight. Best for their size: {joined}.",
                )
            )
    return charts


def speed_chart(result: Result, speed: Result) -> list[Chart]:
    """Our bundles' error by the time of a step, which `quantspeed` measured on wider random weights."""
    sides = speed["sides"]
    base = sides.get("fp32", {}).get("seconds", {}).get("median")
    names = titles(result)
    points = []
    for name, entry in result["bundles"].items():
        side = sides.get(entry["precision"])
        if side is None or not base or entry[SNR] >= LOSSLESS or "psnr" not in entry:
            continue
        ends = interval(entry, "psnr") or (None, None)
        points.append(Point(names[name], True, side["seconds"]["median"] / base, entry["psnr"], *ends))
    if len(points) < 2:
        return []
    says = ", ".join(f"{each.label} at {each.x:.2f} of fp32's time has {each.y:.1f} dB" for each in points)
    x = "time of a step, fp32 = 1"
    chart = frontier_chart(
        "speed",
        "Error of the picture by speed",
        points,
        x,
        LABELS["psnr"],
        f"PSNR by time of a step: {says}.",
    )
    note = (
        f"The time is that of a step of a transformer with a hidden size of {speed['hidden']} and random weights "
        "(kontext-bench quantspeed), the error that of the model above."
    )
    return [Chart(**{**vars(chart), "note": note})]


def steps_chart(result: Result) -> list[Chart]:
    """The velocity's SNR at every step: ours in colour, peers behind them."""
    names = titles(result)
    shown = {name: entry for name, entry in entries(result).items() if entry[SNR] < LOSSLESS}
    ours = [name for name in shown if name in result["bundles"]][: len(SERIES)]
    if not shown or result["steps"] < 2:
        return []
    colours = dict(zip(ours, SERIES, strict=False))
    steps = range(1, result["steps"] + 1)

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for name, entry in shown.items():
            peer = name not in colours
            (line,) = axes.plot(
                steps,
                entry["velocity_snr_steps"],
                color=SOFT if peer else colours[name],
                linewidth=0.9 if peer else 2.2,
                alpha=0.55 if peer else 1,
                zorder=2 if peer else 3,
            )
            tipped(line, names[name])
        axes.set_xlim(1, result["steps"])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel(LABELS[SNR])

    keys = [Key(names[name], colour) for name, colour in colours.items()]
    if len(shown) > len(colours):
        keys.append(Key("other libraries", SOFT))
    rows = [
        [names[name], *(number(value, 1) for value in entry["velocity_snr_steps"])]
        for name, entry in shown.items()
    ]
    worst = min(shown, key=lambda name: min(shown[name]["velocity_snr_steps"]))
    low = min(shown[worst]["velocity_snr_steps"])
    at = shown[worst]["velocity_snr_steps"].index(low) + 1
    return [
        Chart(
            "steps",
            "Error of the velocity, step by step",
            f"SNR of the velocity at each of {result['steps']} steps. The lowest, {low:.1f} dB at step {at}, "
            f"is that of {names[worst]}.",
            Table(["SNR [dB] at step", *map(str, steps)], rows),
            draw,
            340,
            keys,
            "Every step starts where the reference was, so that errors do not add up.",
        )
    ]


def categories_chart(result: Result) -> list[Chart]:
    """PSNR of every edit by category: one mark an edit, a bar at the mean."""
    names = titles(result)
    ours = {
        name: entry
        for name, entry in result["bundles"].items()
        if entry[SNR] < LOSSLESS and "psnr_each" in entry
    }
    kinds = list(dict.fromkeys(result["kinds"]))
    if len(kinds) < 2 or not ours or len(ours) > 4 or len(kinds) > 16:
        return []
    places = {kind: [i for i, each in enumerate(result["kinds"]) if each == kind] for kind in kinds}

    def values(name: str, kind: str) -> list[float]:
        return [ours[name]["psnr_each"][place] for place in places[kind]]

    def mean(each: Sequence[float]) -> float:
        return sum(each) / len(each)

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for number_, (name, colour) in enumerate(zip(ours, SERIES, strict=False)):
            for row, kind in enumerate(kinds):
                found = values(name, kind)
                height = row + (number_ - (len(ours) - 1) / 2) * 0.2
                axes.plot(found, [height] * len(found), "o", color=colour, alpha=0.45, markersize=4.5)
                (mark,) = axes.plot(
                    [mean(found)], [height], "|", color=colour, markersize=12, markeredgewidth=2.4
                )
                tipped(
                    mark, f"{names[name]}, {kind or 'all'}: mean {mean(found):.1f} dB of {len(found)} edits"
                )
        axes.set_yticks(range(len(kinds)), [shortened(kind or "all") for kind in kinds])
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xlabel(METRICS["psnr"].label)
        axes.spines["left"].set_visible(False)

    rows = [
        [kind or "all", str(len(places[kind])), *(f"{mean(values(name, kind)):.1f}" for name in ours)]
        for kind in kinds
    ]
    return [
        Chart(
            "categories",
            "Error of the picture by category",
            "PSNR of every edit by category. "
            + " ".join(
                f"{names[name]}: lowest mean in {min(kinds, key=lambda kind: mean(values(name, kind))) or 'all'}."
                for name in ours
            ),
            Table(["mean PSNR [dB]", "edits", *(names[name] for name in ours)], rows),
            draw,
            max(300, 34 * len(kinds) + 60),
            [Key(names[name], colour, "circle") for name, colour in zip(ours, SERIES, strict=False)],
            "A dot is an edit, a bar the mean.",
        )
    ]
