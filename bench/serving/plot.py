"""The serving benchmark's plot, as SVG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..report import write_text

PLOT = "serving.svg"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 64, 44, 40, 64
RATE = "#1a1a1a"
LATENCIES = {"p50": "#2b6cb0", "p95": "#dd6b20", "p99": "#c53030"}
"""Percentile → colour."""


def plot_link(_: dict[str, Any]) -> str:
    """The plot as a Markdown image, for documents in docs/."""
    return f"![Throughput and latency percentiles by number of concurrent callers](images/{PLOT})"


def draw_load(result: dict[str, Any], path: Path) -> None:
    """Writes the plot. Raises KontextError if the file cannot be written."""
    write_text(path, load_svg(result))


def load_svg(result: dict[str, Any]) -> str:
    """An SVG of throughput (left axis) and latency percentiles in seconds (right axis) by number of callers."""
    levels = result["levels"]
    highest_rate = round_up(max(level["per_second"] for level in levels))
    highest_seconds = round_up(max(level[name] for level in levels for name in LATENCIES))

    def x(index: int) -> float:
        return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / len(levels)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for quarter in range(5):
        share = quarter / 4
        parts += [
            f'<path d="M{LEFT} {y(share):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>',
            label(LEFT - 8, y(share) + 4, f"{highest_rate * share:g}", "end"),
            label(WIDTH - RIGHT + 8, y(share) + 4, f"{highest_seconds * share:g}", "start"),
        ]
    for index, level in enumerate(levels):
        parts.append(label(x(index), HEIGHT - BOTTOM + 18, str(level["concurrency"])))
    parts.append(label(WIDTH / 2, HEIGHT - 8, "concurrent callers"))
    lines = [("edits/s (left)", RATE, "", [level["per_second"] / highest_rate for level in levels])]
    for name, colour in LATENCIES.items():
        shares = [level[name] / highest_seconds for level in levels]
        lines.append((f"{name} in s (right)", colour, ' stroke-dasharray="5 3"', shares))
    for number, (title, colour, dash, shares) in enumerate(lines):
        points = [(x(index), y(share)) for index, share in enumerate(shares)]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in points
        ]
        parts.append(label(LEFT + 60 + number * 130, 20, title, "middle", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def label(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def round_up(value: float) -> float:
    """The smallest of 1, 2, 4, 8 times a power of ten that is at least `value`."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(power * factor for factor in (1, 2, 4, 8, 10) if power * factor >= value)
