"""Tables of the fidelity benchmark: our bundles and the peers by class and bits per weight, with intervals and places.

Results from before there were classes, intervals and places are shown without them.
"""

from __future__ import annotations

import re
from typing import Any

from ..machine import machine_line
from ..report import Table
from .picture_metrics import METRICS
from .places import RANKED

COLUMNS = ("psnr", "ssim", "flip", "ssimulacra2")
"""Metrics of the main table; the others are in the table of details."""

UNKNOWN = "-"

FORMAT_TITLES = {"fp8": "E4M3", "static int8": "static INT8", "int8": "INT8"}
"""What inputs are rounded to → its title in the table of floors."""


def entries(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bundles and peers, by class, then by bits per weight."""
    every = {**result["bundles"], **result.get("peers", {})}
    return dict(sorted(every.items(), key=lambda item: (class_order(item[1]), by_bits(item[1]), item[0])))


def by_bits(entry: dict[str, Any]) -> float:
    return float(entry["bits_per_weight"] or 99)


def class_order(entry: dict[str, Any]) -> tuple[int, int, str]:
    """From the widest weights and inputs to the narrowest; what has no class is last."""
    name = entry.get("scheme", UNKNOWN)
    found = re.match(r"W(\d+)A(\d+)", name)
    return (0, 0, name) if found is None else (-int(found[1]), -int(found[2]), name)


def titles(result: dict[str, Any]) -> dict[str, str]:
    """Entry → its title: our bundles by what only one of them has, number format or format and inputs, else by the
    folder's name."""
    ours = result["bundles"]
    formats = [entry["precision"] for entry in ours.values()]
    with_inputs = [described(entry) for entry in ours.values()]
    chosen = {}
    for name, entry in entries(result).items():
        if name in ours and formats.count(entry["precision"]) == 1:
            chosen[name] = f"kontext {entry['precision']}"
        elif name in ours and with_inputs.count(described(entry)) == 1:
            chosen[name] = f"kontext {described(entry)}"
        elif name in ours:
            chosen[name] = re.sub(f"^{re.escape(result['model'])}-", "kontext ", name)
        else:
            chosen[name] = name
    return chosen


def described(entry: dict[str, Any]) -> str:
    """A bundle's number format and what its inputs are quantized to."""
    inputs = entry.get("activations")
    if entry.get("on_cpu"):
        return f"{entry['precision']}, on a CPU"
    return (
        f"{entry['precision']}, {' and '.join(inputs)} inputs"
        if inputs
        else f"{entry['precision']}, weights only"
    )


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def figure(entry: dict[str, Any], name: str, digits: int) -> str:
    """A figure with its interval; bold if none in its class has a better one."""
    value = number(entry[name], digits)
    if name in entry.get("best", []):
        value = f"**{value}**"
    interval = entry.get("intervals", {}).get(name)
    return value if interval is None else f"{value} [{', '.join(number(end, digits) for end in interval)}]"


def lost(entry: dict[str, Any]) -> str:
    """Percentage points of lost edits with their interval."""
    if entry["lost_edits"] is None:
        return "-"
    interval = entry.get("intervals", {}).get("lost_edits")
    ends = "" if interval is None else f" [{', '.join(f'{100 * end:+.1f}' for end in interval)}]"
    return f"{100 * entry['lost_edits']:+.1f}{ends}"


def place(entry: dict[str, Any]) -> str:
    """By velocity, and by pictures."""
    places = entry.get("places", {})
    return " / ".join(places.get(each, UNKNOWN) for each in RANKED)


def tables(result: dict[str, Any]) -> list[Table]:
    """One row per entry, by class and bits per weight of the quantized layers; and the floors, if there are any."""
    shown = [name for name in COLUMNS if all(name in entry for entry in entries(result).values())]
    header = ["class", "weights", "bits/weight", "place, SNR / PSNR", "velocity SNR [dB]"]
    header += [*(METRICS[name].label for name in shown), "lost edits [points]"]
    names = titles(result)
    rows = [
        [
            entry.get("scheme", UNKNOWN),
            names[name],
            number(entry["bits_per_weight"], 2),
            place(entry),
            figure(entry, "velocity_snr", 1),
            *(figure(entry, each, METRICS[each].digits) for each in shown),
            lost(entry),
        ]
        for name, entry in entries(result).items()
    ]
    return [Table(header, rows), *([floors_table(result)] if result.get("floors") else [])]


def floors_table(result: dict[str, Any]) -> Table:
    """What our bundles with rounded inputs lose by one part alone, beside the whole."""
    names = titles(result)
    rows = []
    for title, entry in result["floors"].items():
        bundle = title.removesuffix(f"-{entry['part']}-alone")
        rows.append(
            [
                floor_title(entry),
                names[bundle],
                *(figure(entry, each, 1) for each in RANKED),
                *(figure(result["bundles"][bundle] | {"best": []}, each, 1) for each in RANKED),
            ]
        )
    header = ["rounded alone", "of", "velocity SNR [dB]", "PSNR [dB]", "SNR of both", "PSNR of both"]
    return Table(header, rows)


def floor_title(entry: dict[str, Any]) -> str:
    formats = " and ".join(FORMAT_TITLES.get(each, each) for each in entry["activations"])
    return f"{formats} {entry['part']} alone"


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
                        *(["unpacked into the fp32 graphs"] if entry.get("unpacked") else []),
                        entry.get("library", "this exporter"),
                    ]
                ),
                number(entry["bits_per_weight_files"], 2),
                *(figure(entry, each, METRICS[each].digits) for each in more),
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
    """Velocity SNR at five steps of the trajectory and at the worst one, and the latents' distance."""
    last = result["steps"] - 1
    chosen = sorted({round(last * quarter / 4) for quarter in range(5)})
    header = ["weights", *(f"SNR, step {step + 1}" for step in chosen), "worst step"]
    header += [f"distance, step {step + 1}" for step in chosen]
    names = titles(result)
    rows = [
        [
            names[name],
            *(f"{entry['velocity_snr_steps'][step]:.1f}" for step in chosen),
            f"{min(entry['velocity_snr_steps']):.1f}",
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
    if any(entry.get("intervals") for entry in entries(result).values()):
        about += " In brackets: 95 % intervals over edits."
    libraries = sorted({entry["library"] for entry in result.get("peers", {}).values()})
    peers = [f"Peers: {', '.join(libraries)}."] if libraries else []
    return "\n".join([about, *peers, machine_line(result["machine"])])


def absences(result: dict[str, Any]) -> list[str]:
    """A line for each metric that could not be computed."""
    return [f"{METRICS[name].label}: not measured ({why})" for name, why in result["absent_measures"].items()]


def detail_footer(result: dict[str, Any]) -> str:
    return "; ".join(absences(result)) or machine_line(result["machine"])
