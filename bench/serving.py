"""Load on a server: callers in a closed loop, each sending its next edit when its last has come.

Throughput and the percentiles of latency against the number of callers, as perf_analyzer reports them for a model.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import KontextError
from ..runtime.server_client import Client, Edit, picture_file
from .inputs import picture_and_prompt
from .machine import describe, one_line
from .report import Table, milliseconds

PERCENTILES = (50, 95, 99)
SCENE = (128, 128)


def measure(
    client: Client, edit: Edit, concurrency: Sequence[int], *, requests: int, warmup: int = 1
) -> dict[str, Any]:
    """Sends `requests` edits at each concurrency, after `warmup` edits that do not count.

    Every edit has a seed of its own, so that nothing on the way can answer from memory.

    Raises:
        KontextError: what the server says of an edit; a measurement with losses is none.
    """
    for index in range(warmup):
        client.edit(seeded(edit, index))
    levels = []
    for callers in concurrency:
        seconds, latencies = closed_loop(client, edit, callers, max(requests, callers))
        levels.append(
            {
                "concurrency": callers,
                "requests": len(latencies),
                "per_second": round(len(latencies) / seconds, 4),
                **{f"p{p}": round(float(np.percentile(latencies, p)), 6) for p in PERCENTILES},
            }
        )
    return {
        "what": "serving",
        "prompt": edit.prompt,
        "references": len(edit.images),
        "steps": edit.steps,
        "size": edit.size,
        "levels": levels,
        "machine": describe(),
    }


def edit_of(image: Path | None, prompt: str | None, steps: int, size: tuple[int, int] | None) -> Edit:
    """The edit that every caller asks for; what is not given comes from a scene of the embedded model's."""
    if image is not None and prompt is not None:
        return Edit(prompt, [picture_file(image)], steps, size=size)
    picture, words = picture_and_prompt(image, prompt, size or SCENE)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Edit(words, [file.getvalue()], steps, size=size)


def seeded(edit: Edit, seed: int) -> Edit:
    return Edit(edit.prompt, edit.images, edit.steps, edit.guidance, seed, edit.size)


def closed_loop(client: Client, edit: Edit, callers: int, requests: int) -> tuple[float, list[float]]:
    """Seconds that all took, and of each request."""
    numbers, lock = iter(range(requests)), threading.Lock()
    latencies: list[float] = []
    faults: list[BaseException] = []

    def call() -> None:
        while not faults:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            begin = time.perf_counter()
            try:
                client.edit(seeded(edit, number))
            except BaseException as fault:
                faults.append(fault)
                return
            latencies.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(callers)]
    begin = time.perf_counter()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        client.close()
        raise
    seconds = time.perf_counter() - begin
    if faults:
        fault = faults[0]
        raise fault if isinstance(fault, KontextError) else KontextError(f"a caller failed: {fault!r}")
    return seconds, latencies


def tables(result: dict[str, Any]) -> list[Table]:
    header = ["callers", "edits", "edits/s", *(f"p{p} [ms]" for p in PERCENTILES)]
    rows = [
        [
            str(level["concurrency"]),
            str(level["requests"]),
            f"{level['per_second']:.2f}",
            *(milliseconds(level[f"p{p}"]) for p in PERCENTILES),
        ]
        for level in result["levels"]
    ]
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    size = "the default size" if result["size"] is None else "{}x{}".format(*result["size"])
    steps = "the bundle's steps" if result["steps"] is None else f"{result['steps']} steps"
    where = "client and server on this machine" if result.get("local") else "the client's machine"
    return (
        f"{steps} at {size}, {result['references']} reference{'s' * (result['references'] != 1)}; "
        f"each caller sends its next edit when its last has come. {where[0].upper()}{where[1:]}: "
        f"{one_line(result['machine'])}"
    )


# -- the plot --

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 64, 44, 40, 64
COLOURS = {"edits/s": "#1a1a1a", "p50": "#2b6cb0", "p95": "#dd6b20", "p99": "#c53030"}


def plot(result: dict[str, Any]) -> str:
    """Throughput (left axis) and latency percentiles (right axis, seconds) against concurrency, as SVG."""
    levels = result["levels"]
    callers = [level["concurrency"] for level in levels]
    rates = [level["per_second"] for level in levels]
    highest_rate = nice(max(rates))
    highest_seconds = nice(max(level[f"p{p}"] for level in levels for p in PERCENTILES))

    def x(index: int) -> float:
        return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / len(callers)

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
    parts += [label(x(index), HEIGHT - BOTTOM + 18, str(count)) for index, count in enumerate(callers)]
    parts.append(label(WIDTH / 2, HEIGHT - 8, "callers at once"))
    series = {"edits/s": [rate / highest_rate for rate in rates]}
    series |= {f"p{p}": [level[f"p{p}"] / highest_seconds for level in levels] for p in PERCENTILES}
    for number, (name, shares) in enumerate(series.items()):
        points = " ".join(f"{x(index):.1f},{y(share):.1f}" for index, share in enumerate(shares))
        dash = "" if name == "edits/s" else ' stroke-dasharray="5 3"'
        unit = "edits/s (left)" if name == "edits/s" else f"{name} in s (right)"
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"{dash}/>',
            label(LEFT + 60 + number * 130, 20, unit, "middle", COLOURS[name]),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def label(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def nice(value: float) -> float:
    """The least of 1, 2, 4, 8 times a power of ten that is not below `value`."""
    power = 10.0 ** np.floor(np.log10(value)) if value > 0 else 1.0
    return float(next(power * factor for factor in (1, 2, 4, 8, 10) if power * factor >= value))
