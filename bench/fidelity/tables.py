"""Tables of the fidelity benchmark: our bundles and the peers by bits per weight."""

from __future__ import annotations

from typing import Any

from ..machine import machine_line
from ..report import Table
from .picture_metrics import METRICS

COLUMNS = ("psnr", "ssim", "flip", "ssimulacra2")
"""Metrics of the main table; the others are in the table of details."""


def entries(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bundles and peers, by bits per weight."""
    every = {**result["bundles"], **result.get("peers", {})}
    return dict(sorted(every.items(), key=lambda item: (item[1]["bits_per_weight"] or 99, item[0])))


def titles(result: dict[str, Any]) -> dict[str, str]:
    """Entry → its title: our bundles by what only one of them has, number format or format and inputs, else by name."""
    ours = result["bundles"]
    formats = [entry["precision"] for entry in ours.values()]
    with_inputs = [described(entry) for entry in ours.values()]
    chosen = {}
    for name, entry in entries(result).items():
        if name in ours and formats.count(entry["precision"]) == 1:
            chosen[name] = f"kontext {entry['precision']}"
        elif name in ours and with_inputs.count(described(entry)) == 1:
            chosen[name] = f"kontext {described(entry)}"
        else:
            chosen[name] = name
    return chosen


def described(entry: dict[str, Any]) -> str:
    """A bundle's number format and what its inputs are quantized to."""
    inputs = entry.get("activations")
    return (
        f"{entry['precision']}, {' and '.join(inputs)} inputs"
        if inputs
        else f"{entry['precision']}, weights only"
    )


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def tables(result: dict[str, Any]) -> list[Table]:
    """One row per entry, by bits per weight of the quantized layers."""
    shown = [name for name in COLUMNS if all(name in entry for entry in entries(result).values())]
    header = ["weights", "bits/weight", "velocity SNR [dB]", "worst step"]
    header += [*(METRICS[name].label for name in shown), "lost edits [points]"]
    names = titles(result)
    rows = [
        [
            names[name],
            number(entry["bits_per_weight"], 2),
            f"{entry['velocity_snr']:.1f}",
            f"{min(entry['velocity_snr_steps']):.1f}",
            *(number(entry[each], METRICS[each].digits) for each in shown),
            "-" if entry["lost_edits"] is None else f"{100 * entry['lost_edits']:+.1f}",
        ]
        for name, entry in entries(result).items()
    ]
    return [Table(header, rows)]


def detail_tables(result: dict[str, Any]) -> list[Table]:
    """Two tables: formats, libraries, bits of the whole files and the remaining metrics; and errors at five steps."""
    more = [name for name in METRICS if name not in COLUMNS and name in next(iter(entries(result).values()))]
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
                *(number(entry[each], METRICS[each].digits) for each in more),
            ]
        )
    header = ["weights", "what", "bits/weight of the files", *(METRICS[name].label for name in more)]
    return [Table(header, rows), steps_table(result)]


def categories_table(result: dict[str, Any]) -> Table:
    """The pictures' PSNR in each category of edits, by its mean."""
    kinds = result["kinds"]
    names = titles(result)
    rows = []
    for kind in dict.fromkeys(kinds):
        places = [place for place, each in enumerate(kinds) if each == kind]
        means = [
            sum(entry["psnr_each"][place] for place in places) / len(places)
            for entry in entries(result).values()
        ]
        rows.append(
            [kind or "all", str(len(places)), *(number(mean, METRICS["psnr"].digits) for mean in means)]
        )
    return Table(["PSNR [dB] of edits", "edits", *(names[name] for name in entries(result))], rows)


def steps_table(result: dict[str, Any]) -> Table:
    """Velocity SNR and the latents' distance at five steps of the trajectory."""
    last = result["steps"] - 1
    chosen = sorted({round(last * quarter / 4) for quarter in range(5)})
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
    success, data = result["reference"]["success"], result.get("data")
    kind = f"edits of {data}" if data else "held-out edits"
    judged = "" if success is None else f", which succeeds in {success:.0%} of them"
    about = (
        f"{result['model']}, {result['edits']} {kind} at {result['steps']} steps against "
        f"{result['reference']['name']}{judged}. Bits are of the quantized layers of "
        "the transformer and its modulation, scales and branches included."
    )
    libraries = sorted({entry["library"] for entry in result.get("peers", {}).values()})
    peers = [f"Peers: {', '.join(libraries)}."] if libraries else []
    return "\n".join([about, *peers, machine_line(result["machine"])])


def absences(result: dict[str, Any]) -> list[str]:
    """A line for each metric that could not be computed."""
    return [f"{METRICS[name].label}: not measured ({why})" for name, why in result["absent_measures"].items()]


def detail_footer(result: dict[str, Any]) -> str:
    return "; ".join(absences(result)) or machine_line(result["machine"])
