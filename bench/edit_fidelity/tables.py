"""Tables of the edit-fidelity benchmark, its levels apart: latents and pictures; the kept region against the source;
success; edits in chains; few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..machine import machine_line
from ..report import Table
from .measures import EDIT, LATENTS, MEASURES, SOURCE, Measure

ABSENT = {**{name: measure.label for name, measure in MEASURES.items()}, "turns": "drift in chains"}
"""What may be absent → its name."""

VERDICTS = {"below": "below", "above": "**above**", "equal": "equal", "open": "open"}
"""A verdict on an error beside the difference of two seeds, as it is shown."""

DRIFT = {
    "success": "success of the turn",
    "psnr": "PSNR [dB] to the reference's chain",
    "source_psnr": "kept region: PSNR [dB] to the first picture",
    "source_delta_e": "kept region: ΔE2000 to the first picture",
}
"""Measures of chains, a table each."""

STEPS = ("latent_distance", "psnr", "kept_delta_e", "source_psnr", "source_delta_e", "success", "text_error")
"""Measures that are shown of fewer steps."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Level:
    """A part of the result: what is compared with what, its tables, and a note below them."""

    title: str
    tables: Callable[[Result], Sequence[Table]]
    note: Callable[[Result], str]


def tables(result: Result) -> list[Table]:
    return [table for level in LEVELS for table in level.tables(result)]


def rows_of(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """Titles and values: the reference, its other seed, and the bundles."""
    yield f"{result['reference']['name']} (reference)", result["reference"]
    yield "reference, another seed", result["other_seed"]
    yield from result["bundles"].items()


def shown(measures: Mapping[str, Measure], result: Result) -> dict[str, Measure]:
    """Those that apply to some of the edits."""
    return {name: measure for name, measure in measures.items() if name in result["reference"]}


def cell(values: Mapping[str, Any], name: str, interval: bool = True) -> str:
    """A mean, and the ends of its interval if there are edits enough for one."""
    if name not in values:
        return "-"
    digits = MEASURES[name].digits
    found = values[f"{name}_interval"] if interval else None
    ends = "" if found is None else f" [{', '.join(f'{end:.{digits}f}' for end in found)}]"
    return f"{values[name]:.{digits}f}{ends}"


def means_table(title: str, measures: Mapping[str, Measure], result: Result) -> Table:
    chosen = shown(measures, result)
    rows = [[name, *(cell(values, each) for each in chosen)] for name, values in rows_of(result)]
    return Table([title, *(measure.label for measure in chosen.values())], rows)


def seeds_table(measures: Mapping[str, Measure], result: Result) -> Table:
    """Each error as a share of the difference that another seed makes, and the verdict. Ratios have no units."""
    chosen = shown(measures, result)
    labels = [measure.label.partition(" [")[0] for measure in chosen.values()]
    rows = [
        [name, *(beside(entry["beside_seeds"], each) for each in chosen)]
        for name, entry in result["bundles"].items()
    ]
    return Table(["error by the seeds' difference", *labels], rows)


def beside(found: Mapping[str, Any], name: str) -> str:
    if name not in found:
        return "-"
    ratio, verdict = found[name]["ratio"], VERDICTS[found[name]["verdict"]]
    return verdict if ratio is None else f"{ratio:.2f} {verdict}"


def latents_tables(result: Result) -> list[Table]:
    """Without the reference's own row, which would have no error."""
    means = means_table("against the reference", LATENTS, result)
    return [Table(means.header, means.rows[1:]), seeds_table(LATENTS, result)]


def source_tables(result: Result) -> list[Table]:
    if not shown(SOURCE, result):
        return []
    return [means_table("against the source", SOURCE, result), seeds_table(SOURCE, result)]


def success_tables(result: Result) -> list[Table]:
    """With the right results' row, where their text was read."""
    chosen = shown(EDIT, result)
    if not chosen:
        return []
    means = means_table("the edit", EDIT, result)
    right = ["the right results", *(cell(result["targets"], name) for name in chosen)]
    rows = [right, *means.rows] if "text_error" in result["targets"] else means.rows
    return [Table(means.header, rows), seeds_table(EDIT, result)]


def drift_tables(result: Result) -> list[Table]:
    """A table for each measure that applies: a column for each turn."""
    turns = result["reference"]["turns"]
    found = []
    for measure, label in DRIFT.items():
        if any(measure in values for values in turns):
            rows = [
                [name, *(cell(values, measure, interval=False) for values in entry["turns"])]
                for name, entry in rows_of(result)
            ]
            header = [label, *(f"turn {turn}" for turn in range(1, len(turns) + 1))]
            found.append(Table(header, rows[1:] if measure == "psnr" else rows))
    return found


def steps_tables(result: Result) -> list[Table]:
    """Every number of steps, if there are several, compared with the reference at the most."""
    most = max(result["steps"])
    chosen = [name for name in STEPS if name in shown(MEASURES, result)]
    labels = [
        f"source, {MEASURES[name].label}" if name in SOURCE else MEASURES[name].label for name in chosen
    ]
    rows = [
        [f"{name}, {steps} steps", *(cell(values, each, interval=False) for each in chosen)]
        for name, entry in ((result["reference"]["name"], result["reference"]), *result["bundles"].items())
        for steps, values in {str(most): entry, **entry["fewer_steps"]}.items()
    ]
    return (
        [Table([f"against the reference at {most} steps", *labels], rows)] if len(result["steps"]) > 1 else []
    )


def regions_note(result: Result) -> str:
    """How many edits have a region to keep, and who says so."""
    origins = [
        origin for origin, share in zip(result["regions"], result["kept_shares"], strict=True) if share
    ]
    counted = ", ".join(f"{origins.count(name)} from the {name}" for name in dict.fromkeys(origins))
    return f"{len(origins)} of {result['edits']} edits have a region to keep" + (
        f": {counted}." if counted else "."
    )


def latents_note(result: Result) -> str:
    return f"{regions_note(result)} In brackets: 95 % intervals of means over edits."


def source_note(result: Result) -> str:
    return "The source passes through the autoencoder, so that the reference's own row is the least that can be had."


def success_note(result: Result) -> str:
    texts = sum(wanted is not None for wanted in result["wanted"])
    told = (
        f"{texts} of {result['edits']} edits ask for a text, {sum(result['characters'])} are of a character."
    )
    return " ".join([told, *(f"{line}." for line in absences(result))])


def drift_note(result: Result) -> str:
    chains = result["chains"]
    if not chains:
        return "No edits go on with each other's results."
    kinds = dict.fromkeys(", ".join(filter(None, each)) for each in result["chain_kinds"])
    what = f": {next(iter(kinds))}" if len(kinds) == 1 and next(iter(kinds)) else ""
    count = "1 chain" if len(chains) == 1 else f"{len(chains)} chains"
    return f"{count} of up to {max(map(len, chains))} edits{what}."


def settings_note(result: Result) -> str:
    kind = f"edits of {result['data']}" if result["data"] else "held-out edits"
    about = (
        f"{result['model']}, {result['edits']} {kind} at {max(result['steps'])} steps, seed {result['seed']}."
    )
    return f"{about}\n{machine_line(result['machine'])}"


def footer(result: Result) -> str:
    about, machine = settings_note(result).splitlines()
    return f"{about} {drift_note(result)} {latents_note(result)}\n{machine}"


def absences(result: Result) -> list[str]:
    """A line for each measure that could not be taken."""
    return [f"{ABSENT[name]}: not measured ({why})" for name, why in result["absent_measures"].items()]


LEVELS = (
    Level(
        "Latents and pictures, beside the reference's of the same edit and seed:",
        latents_tables,
        latents_note,
    ),
    Level("The kept region, beside the source:", source_tables, source_note),
    Level("Success:", success_tables, success_note),
    Level("Edits in chains, each of the result before:", drift_tables, drift_note),
    Level("Few steps:", steps_tables, settings_note),
)
