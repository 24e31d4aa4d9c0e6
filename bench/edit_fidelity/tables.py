"""Tables of the edit-fidelity benchmark, a level each: latents and pictures; the kept region; the edit; chains of
edits; few steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..machine import machine_line
from ..report import Table
from .measures import EDIT, LATENTS, MEASURES, SOURCE, Measure

ABSENT = {**{name: measure.label for name, measure in MEASURES.items()}, "turns": "drift in chains"}
WORDS = {"below": "below", "above": "**above**", "equal": "equal", "open": "open"}
"""A verdict on an error beside the seeds' own difference, as it is shown."""


def tables(result: dict[str, Any]) -> list[Table]:
    return [
        latents_table(result),
        seeds_table(result),
        source_table(result),
        edit_table(result),
        *drift_tables(result),
        steps_table(result),
    ]


def rows_of(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Titles and values at the most steps: the reference, its other seed, and the bundles."""
    yield f"{result['reference']['name']} (reference)", result["reference"]
    yield "reference, another seed", result["other_seed"]
    yield from result["bundles"].items()


def shown(measures: Mapping[str, Measure], result: dict[str, Any]) -> dict[str, Measure]:
    """Those that apply to some of the edits."""
    return {name: measure for name, measure in measures.items() if name in result["reference"]}


def cell(values: Mapping[str, Any], name: str, interval: bool = True) -> str:
    """A mean, and the ends of its interval."""
    if name not in values:
        return "-"
    digits = MEASURES[name].digits
    low, high = values[f"{name}_interval"]
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if interval else ""
    return f"{values[name]:.{digits}f}{ends}"


def level_table(title: str, measures: Mapping[str, Measure], result: dict[str, Any], first: int = 0) -> Table:
    chosen = shown(measures, result)
    rows = [[name, *(cell(values, each) for each in chosen)] for name, values in rows_of(result)]
    return Table([title, *(measure.label for measure in chosen.values())], rows[first:])


def latents_table(result: dict[str, Any]) -> Table:
    """Level 1: against the reference's latents and pictures; the reference itself would be without any error."""
    return level_table("against the reference's result", LATENTS, result, first=1)


def source_table(result: dict[str, Any]) -> Table:
    return level_table("against the source", SOURCE, result)


def edit_table(result: dict[str, Any]) -> Table:
    """Level 2; with the ceiling of reading, if there is one."""
    table = level_table("the edit", EDIT, result)
    if "text_error" not in result["targets"]:
        return table
    chosen = shown(EDIT, result)
    ceiling = ["the right result", *(cell(result["targets"], name) for name in chosen)]
    return Table(table.header, [ceiling, *table.rows])


def seeds_table(result: dict[str, Any]) -> Table:
    """Each error as a share of the difference that another seed makes, and the verdict."""
    chosen = {**shown(LATENTS, result), **shown(SOURCE, result), **shown(EDIT, result)}
    labels = [f"source {label}" if name in SOURCE else label for name, label in labels_of(chosen)]
    rows = [
        [name, *(beside(entry["beside_seeds"], each) for each in chosen)]
        for name, entry in result["bundles"].items()
    ]
    return Table(["error / difference of two seeds", *labels], rows)


def labels_of(measures: Mapping[str, Measure]) -> list[tuple[str, str]]:
    """Without units, which ratios have none of."""
    return [(name, measure.label.partition(" [")[0]) for name, measure in measures.items()]


def beside(found: Mapping[str, Any], name: str) -> str:
    if name not in found:
        return "-"
    each = found[name]
    ratio = "-" if each["ratio"] is None else f"{each['ratio']:.2f}"
    return f"{ratio} {WORDS[each['verdict']]}"


DRIFT = {
    "success": "success",
    "psnr": "PSNR to the reference's chain [dB]",
    "source_psnr": "kept since the first picture: PSNR [dB]",
    "source_delta_e": "kept since the first picture: ΔE2000",
}


def drift_tables(result: dict[str, Any]) -> list[Table]:
    """A table for each measure that applies: a column for each turn."""
    turns = len(result["reference"]["turns"])
    names = {f"{result['reference']['name']} (reference)": result["reference"]}
    names |= {"reference, another seed": result["other_seed"], **result["bundles"]}
    found = []
    for measure, label in DRIFT.items():
        if turns and measure in result["reference"]["turns"][0]:
            rows = [
                [name, *(cell(values, measure, interval=False) for values in entry["turns"])]
                for name, entry in names.items()
                if not (measure == "psnr" and entry is result["reference"])
            ]
            found.append(Table([label, *(f"turn {turn + 1}" for turn in range(turns))], rows))
    return found


STEPS = ("latent_distance", "psnr", "kept_delta_e", "source_psnr", "source_delta_e", "success", "text_error")


def steps_table(result: dict[str, Any]) -> Table:
    """Every number of steps, compared with the reference at the most."""
    chosen = [name for name in STEPS if name in shown(MEASURES, result)]
    labels = [f"{'source ' if name in SOURCE else ''}{MEASURES[name].label}" for name in chosen]
    every: Sequence[tuple[str, Any]] = [
        (result["reference"]["name"], result["reference"]),
        *result["bundles"].items(),
    ]
    rows = [
        [f"{name}, {steps} steps", *(cell(values, each, interval=False) for each in chosen)]
        for name, entry in every
        for steps, values in {max(result["steps"]): entry, **entry["fewer_steps"]}.items()
    ]
    return Table([f"against the reference at {max(result['steps'])} steps", *labels], rows)


def footer(result: dict[str, Any]) -> str:
    data = result["data"]
    kind = f"edits of {data}" if data else "held-out edits"
    chains = result["chains"]
    chained = f" and {len(chains)} chains of up to {max(map(len, chains))} edits" if chains else ""
    origins = [origin for origin in result["regions"] if origin]
    counted = ", ".join(f"{origins.count(name)} from the {name}" for name in dict.fromkeys(origins))
    return (
        f"{result['model']}, {result['edits']} {kind}{chained} at {max(result['steps'])} steps, seed {result['seed']}; "
        f"regions: {counted}. In brackets: 95 % intervals of means over edits.\n{machine_line(result['machine'])}"
    )


def absences(result: dict[str, Any]) -> list[str]:
    """A line for each measure that could not be taken."""
    return [f"{ABSENT[name]}: not measured ({why})" for name, why in result["absent_measures"].items()]
