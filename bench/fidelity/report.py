"""What `kontext-bench fidelity` found, in tables and as a plot: our bundles and the peers by bits per weight."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import KontextError
from ..machine import one_line
from ..report import Table
from .pictures import MEASURES

PLOT = "fidelity.png"

COLUMNS = ("psnr", "ssim", "flip", "ssimulacra2")
"""Measures of pictures in the table; the others are in a table of their own."""

OURS, THEIRS = "#0072b2", "#d55e00"


def entries(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bundles and peers together, fewest bits first."""
    every = {**result["bundles"], **result.get("peers", {})}
    return dict(sorted(every.items(), key=lambda item: (item[1]["bits_per_weight"] or 99, item[0])))


def titles(result: dict[str, Any]) -> dict[str, str]:
    """What each entry is called: ours by their number format, where only one has it."""
    formats = [entry["precision"] for entry in result["bundles"].values()]
    return {
        name: f"kontext {entry['precision']}"
        if name in result["bundles"] and formats.count(entry["precision"]) == 1
        else name
        for name, entry in entries(result).items()
    }


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def tables(result: dict[str, Any]) -> list[Table]:
    """One row each, by bits per weight of the quantized layers."""
    shown = [name for name in COLUMNS if all(name in entry for entry in entries(result).values())]
    header = ["weights", "bits/weight", "velocity SNR [dB]", "worst step"]
    header += [*(MEASURES[name].label for name in shown), "lost edits [points]"]
    names = titles(result)
    rows = [
        [
            names[name],
            number(entry["bits_per_weight"], 2),
            f"{entry['velocity_snr']:.1f}",
            f"{min(entry['velocity_snr_steps']):.1f}",
            *(number(entry[each], MEASURES[each].digits) for each in shown),
            f"{100 * entry['lost_edits']:+.1f}",
        ]
        for name, entry in entries(result).items()
    ]
    return [Table(header, rows)]


def detail_tables(result: dict[str, Any]) -> list[Table]:
    """What was quantized, by whom; the remaining measures; whole files; and steps at the start, middle and end."""
    more = [name for name in MEASURES if name not in COLUMNS and name in next(iter(entries(result).values()))]
    names = titles(result)
    rows = []
    for name, entry in entries(result).items():
        rows.append(
            [
                names[name],
                ", ".join(
                    [
                        entry["precision"],
                        *(f"{kind} activations" for kind in entry.get("activations", [])),
                        entry.get("library", "this exporter"),
                    ]
                ),
                number(entry["bits_per_weight_files"], 2),
                *(number(entry[each], MEASURES[each].digits) for each in more),
            ]
        )
    header = ["weights", "what", "bits/weight of the files", *(MEASURES[name].label for name in more)]
    return [Table(header, rows), steps_table(result)]


def steps_table(result: dict[str, Any]) -> Table:
    """Velocity SNR and the latents' distance along the trajectory, at five steps."""
    last = result["steps"] - 1
    chosen = sorted({round(last * part / 4) for part in range(5)})
    header = ["weights", *(f"SNR, step {step + 1}" for step in chosen)]
    header += [f"distance, step {step + 1}" for step in chosen]
    names = titles(result)
    rows = [
        [
            names[name],
            *(f"{entry['velocity_snr_steps'][step]:.1f}" for step in chosen),
            *(f"{entry['latent_distance_steps'][step]:.4f}" for step in chosen),
        ]
        for name, entry in entries(result).items()
    ]
    return Table(header, rows)


def footer(result: dict[str, Any]) -> str:
    success = result["reference"]["success"]
    about = (
        f"{result['model']}, {result['edits']} held-out edits at {result['steps']} steps against "
        f"{result['reference']['name']}, which succeeds in {success:.0%} of them. Bits are of the quantized layers of "
        "the transformer and its modulation, scales and branches included."
    )
    libraries = sorted({entry["library"] for entry in result.get("peers", {}).values()})
    peers = [f"Peers: {', '.join(libraries)}."] if libraries else []
    return "\n".join([about, *peers, one_line(result["machine"])])


def absences(result: dict[str, Any]) -> list[str]:
    """What could not be measured, a line each."""
    return [f"{MEASURES[name].label}: not present ({why})" for name, why in result["absent_measures"].items()]


def detail_footer(result: dict[str, Any]) -> str:
    return "; ".join(absences(result)) or one_line(result["machine"])


def plot_link(result: dict[str, Any]) -> str:
    """The plot, as a document in docs/ shows it."""
    return f"![Bits per weight against the velocity's SNR, ours and others', of {result['model']}](images/{PLOT})"


def draw(result: dict[str, Any], path: Path) -> None:
    """The frontier: velocity SNR against bits per weight, as a PNG at `path`.

    Raises:
        KontextError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise KontextError(
            f"the plot needs matplotlib ({fault}): pip install 'kontext-export[bench]'"
        ) from None
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes, names = figure.add_subplot(), titles(result)
    labels: list[tuple[str, tuple[float, float], str]] = []
    for group, color, marker, label in (
        ("bundles", OURS, "o", "kontext-export"),
        ("peers", THEIRS, "s", "other libraries, weights alone"),
    ):
        points = {
            names[name]: (entry["bits_per_weight"], entry["velocity_snr"])
            for name, entry in result.get(group, {}).items()
            if entry["bits_per_weight"] is not None and entry["velocity_snr"] < 200
        }
        if points:
            axes.scatter(
                *np.array(list(points.values())).T, color=color, marker=marker, label=label, zorder=3
            )
        labels += [(name, place, color) for name, place in points.items()]
    axes.set_xlabel("bits per weight of the quantized layers, scales and branches included")
    axes.set_ylabel("SNR of the velocity along the reference's trajectory [dB]")
    axes.set_title(f"{result['model']}: how much of the fp32 velocity is left")
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.draw_without_rendering()  # the axes' place is known from here on
    taken: list[tuple[float, float]] = []
    for name, place, color in sorted(labels, key=lambda label: label[1][1]):
        x, y = axes.transData.transform(place)
        height = max([y, *(other + 14 for beside, other in taken if abs(beside - x) < 130)])
        taken.append((x, height))
        offset = (7, (height - y) * 72 / figure.dpi)
        axes.annotate(
            name, place, xytext=offset, textcoords="offset points", va="center", fontsize=8, color=color
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".png")
    os.close(handle)
    try:
        figure.savefig(partial, metadata={"Software": None})
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
