"""Charts of speed, memory, servers and success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..registry import Result
from ..report import Table
from .charts import CARD, INK, SERIES, Chart, Key, bars, tipped

MIB = 2**20
STAGE_TITLES = {
    "text_encoder": "CLIP",
    "text_encoder_2": "T5",
    "vae_encoder": "VAE encoder",
    "modulation": "modulation",
    "step": "steps",
    "vae_decoder": "VAE decoder",
}


def latency_charts(result: Result) -> list[Chart]:
    sides = result["sides"]
    colours = SERIES[: len(sides)]
    keys = [Key(side, colour, "bar") for side, colour in zip(sides, colours, strict=True)]
    stages = [stage for stage in STAGE_TITLES if any(stage in side for side in sides.values())]
    labels = [f"{result['steps']} steps" if stage == "step" else STAGE_TITLES[stage] for stage in stages]

    def time(side: dict[str, Any], stage: str) -> float | None:
        """Milliseconds of an edit: all its steps together."""
        if stage not in side:
            return None
        each: float = side[stage]["median"] * 1000
        return each * result["steps"] if stage == "step" else each

    values = [[time(side, stage) for stage in stages] for side in sides.values()]

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        bars(axes, labels, values, colours, "")
        axes.set_xlabel("milliseconds of an edit")

    rows = [
        [label, *("-" if side[row] is None else f"{side[row]:.1f}" for side in values)]
        for row, label in enumerate(labels)
    ]
    whole = ", ".join(f"{name} {side['edit']['median'] * 1000:.0f} ms" for name, side in sides.items())
    charts = [
        Chart(
            "stages",
            "Where an edit's time goes",
            f"Median milliseconds of an edit's stages. A whole edit: {whole}.",
            Table(["median [ms]", *sides], rows),
            draw,
            60 + len(stages) * (24 + 16 * len(sides)),
            keys if len(sides) > 1 else (),
            f"A whole edit: {whole}.",
        )
    ]
    return [*charts, memory_chart(result, colours)]


def memory_chart(result: Result, colours: Sequence[str]) -> Chart:
    """Resident memory over time, or its peaks where only those were measured."""
    peaks = {name: peak / MIB for name, peak in result["peak_bytes"].items()}
    says = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
    table = Table(["peak [MiB]", "memory"], [[name, f"{peak:.0f}"] for name, peak in peaks.items()])
    memory = {name: samples for name, samples in result.get("memory", {}).items() if samples}

    def draw_bars(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        bars(axes, [""], [[peak] for peak in peaks.values()], colours, "")
        axes.set_xlabel("MiB")

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for colour, (name, samples) in zip(colours, memory.items(), strict=False):
            seconds, sizes = zip(*samples, strict=True)
            mib = [size / MIB for size in sizes]
            axes.fill_between(seconds, mib, color=colour, alpha=0.12)
            (line,) = axes.plot(seconds, mib, color=colour)
            tipped(line, f"{name}: up to {max(mib):.0f} MiB")
        axes.set_ylim(0)
        axes.set_xlim(0)
        axes.set_xlabel("seconds since the process started")
        axes.set_ylabel("resident memory [MiB]")

    keys = [Key(name, colour, "bar") for name, colour in zip(peaks, colours, strict=True)]
    if not memory:
        return Chart(
            "memory",
            "Peak memory of a process",
            f"Peak memory: {says}.",
            table,
            draw_bars,
            80 + 40 * len(peaks),
            keys,
        )
    return Chart(
        "memory",
        "Memory of a process that makes one edit",
        f"Resident memory from start to end. Peaks: {says}.",
        table,
        draw,
        300,
        keys,
    )


def side_charts(values: dict[str, dict[str, float]], titles: dict[str, tuple[str, str, str]]) -> list[Chart]:
    """Of every side a bar in each of several charts: `titles` has each chart's title, axis and form of its numbers."""
    charts = []
    for name, (title, axis, form) in titles.items():
        found = {side: each[name] for side, each in values.items() if name in each}
        rows = [[side, format(value, form)] for side, value in found.items()]

        def draw(figure: Any, narrow: bool, found: dict[str, float] = found, axis: str = axis) -> None:
            axes = figure.subplots()
            bars(axes, list(found), [list(found.values())], SERIES[:1], "")
            axes.set_xlabel(axis)

        says = ", ".join(f"{side} {value}" for side, value in rows)
        charts.append(
            Chart(name, title, f"{axis}: {says}.", Table(["side", axis], rows), draw, 70 + 34 * len(found))
        )
    return charts


def start_charts(result: Result) -> list[Chart]:
    values = {
        name: {"wall": side["seconds"]["median"], "peak": side["peak_bytes"]["median"] / MIB}
        for name, side in result["sides"].items()
    }
    return side_charts(
        values,
        {
            "wall": ("From process start to PNG", "median seconds", ".2f"),
            "peak": ("Peak memory", "median MiB", ".0f"),
        },
    )


def quantspeed_charts(result: Result) -> list[Chart]:
    """Time of a step, and size and error beside it."""
    sides = result["sides"]
    names = list(sides)
    times = [sides[name]["seconds"]["median"] * 1000 for name in names]

    def draw_times(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        bars(axes, names, [times], SERIES[:1], "")
        axes.set_xlabel("milliseconds a step")

    charts = [
        Chart(
            "times",
            "Time of a step",
            "Median milliseconds: "
            + ", ".join(f"{n} {t:.0f}" for n, t in zip(names, times, strict=True))
            + ".",
            Table(["side", "median [ms]"], [[n, f"{t:.1f}"] for n, t in zip(names, times, strict=True)]),
            draw_times,
            70 + 32 * len(names),
        )
    ]
    lossy = [name for name in names if sides[name].get("snr") is not None and sides[name]["snr"] < 199]
    if len(lossy) < 2:
        return charts

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for number, name in enumerate(lossy):
            side = sides[name]
            (mark,) = axes.plot(
                [side["seconds"]["median"] * 1000],
                [side["snr"]],
                "o",
                color=SERIES[number % len(SERIES)],
                markersize=(side["peak_bytes"] / max(sides[each]["peak_bytes"] for each in lossy)) ** 0.5
                * 26,
                markeredgecolor=CARD,
                alpha=0.85,
            )
            tipped(mark, f"{name}: {side['snr']:.1f} dB, peak {side['peak_bytes'] / MIB:.0f} MiB")
            axes.annotate(
                name,
                (side["seconds"]["median"] * 1000, side["snr"]),
                xytext=(0, 18),
                textcoords="offset points",
                ha="center",
                fontsize=11,
                color=INK,
            )
        axes.margins(x=0.25, y=0.3)
        axes.set_xlabel("milliseconds a step")
        axes.set_ylabel("SNR of the velocity [dB]")

    rows = [
        [
            name,
            f"{sides[name]['seconds']['median'] * 1000:.1f}",
            f"{sides[name]['snr']:.1f}",
            f"{sides[name]['peak_bytes'] / MIB:.0f}",
        ]
        for name in lossy
    ]
    says = ", ".join(f"{row[0]} {row[1]} ms and {row[2]} dB with {row[3]} MiB" for row in rows)
    return [
        *charts,
        Chart(
            "frontier",
            "Error, speed and memory together",
            f"SNR by time of a step; the mark's area is the peak memory: {says}.",
            Table(["side", "median [ms]", "SNR [dB]", "peak [MiB]"], rows),
            draw,
            320,
            note="To the left is faster, up is closer to fp32; the area is the process's peak memory.",
        ),
    ]


def success_charts(result: Result) -> list[Chart]:
    kinds = list(result["groups"])
    counts = list(result["successes"])
    shares = [
        [100 * result["successes"][steps][kind] / result["count"] for kind in kinds] for steps in counts
    ]

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        bars(axes, kinds, shares, SERIES[: len(counts)], "")
        axes.set_xlim(0, 112)
        axes.set_xlabel("percent of edits that the judge accepts")

    best, worst = (pick(kinds, key=lambda kind: shares[0][kinds.index(kind)]) for pick in (max, min))
    return [
        Chart(
            "success",
            "Edits that succeed",
            f"Success by kind of edit. At {counts[0]} steps the best is {best}, the worst {worst}.",
            Table(
                ["percent", *(f"{steps} steps" for steps in counts)],
                [[kind, *(f"{side[row]:.0f}" for side in shares)] for row, kind in enumerate(kinds)],
            ),
            draw,
            60 + len(kinds) * (14 + 14 * len(counts)),
            [Key(f"{s} steps", c, "bar") for s, c in zip(counts, SERIES, strict=False)]
            if len(counts) > 1
            else (),
        )
    ]


def serving_charts(result: Result) -> list[Chart]:
    """Throughput and latency by concurrent callers."""
    levels = result["levels"]
    callers = [level["concurrency"] for level in levels]
    percentiles = ("p50", "p95", "p99")

    def ticks(axes: Any) -> None:
        axes.set_xticks(range(len(callers)), list(map(str, callers)))
        axes.set_xlabel("concurrent callers")
        axes.set_ylim(0)

    def draw_rate(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        axes.plot([level["per_second"] for level in levels], "o-", color=SERIES[0])
        axes.set_ylabel("edits a second")
        ticks(axes)

    def draw_latency(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for name, colour in zip(percentiles, SERIES, strict=False):
            axes.plot([level[name] * 1000 for level in levels], "o-", color=colour)
        axes.set_ylabel("milliseconds")
        ticks(axes)

    rates = [[str(level["concurrency"]), f"{level['per_second']:.1f}"] for level in levels]
    waits = [
        [str(each["concurrency"]), *(f"{each[name] * 1000:.0f}" for name in percentiles)] for each in levels
    ]
    return [
        Chart(
            "rate",
            "Throughput",
            "Edits a second: " + ", ".join(f"{rate} with {count} callers" for count, rate in rates) + ".",
            Table(["callers", "edits a second"], rates),
            draw_rate,
        ),
        Chart(
            "waits",
            "Latency",
            "Milliseconds: " + ", ".join(f"p95 {row[2]} with {row[0]} callers" for row in waits) + ".",
            Table(["callers", *(f"{name} [ms]" for name in percentiles)], waits),
            draw_latency,
            keys=[Key(name, colour) for name, colour in zip(percentiles, SERIES, strict=False)],
        ),
    ]
