"""Where a report's results come from: the commands, the commits, and the machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report import Table
from .loaded import Loaded
from .markup import Html, element, joined, table_html

UNKNOWN = "not recorded"


def origin_html(results: Sequence[Loaded]) -> Html:
    """A row for each result and a column for each machine."""
    machines: list[dict[str, Any]] = []
    rows = []
    for each in results:
        machine = each.result.get("machine")
        if isinstance(machine, dict) and machine not in machines:
            machines.append(machine)
        known = letter(machines.index(machine)) if isinstance(machine, dict) else "-"
        rows.append([each.path.name, *recorded(each.result.get("provenance")), known])
    runs = Table(["result", "command", "commit", "started", "took", "seed", "machine"], rows)
    parts = [table_html(runs, "Results and where they come from")]
    if machines:
        parts.append(element("h3", "Machines" if len(machines) > 1 else "Machine"))
        parts.append(table_html(machines_table(machines), "Machines"))
    return joined(parts)


def letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def recorded(provenance: Any) -> list[str]:
    """Command, commit, start, duration and seed of a result; those before provenance was recorded have none."""
    if not isinstance(provenance, dict):
        return [UNKNOWN, UNKNOWN, "-", "-", "-"]
    source = provenance.get("source") or provenance
    commit = source.get("commit") if isinstance(source, dict) else None
    modified = ", modified" if isinstance(source, dict) and source.get("modified") else ""
    seconds = provenance.get("seconds")
    seed = provenance.get("seed")
    return [
        f"`{provenance['command']}`" if provenance.get("command") else UNKNOWN,
        f"{str(commit)[:12]}{modified}" if commit else UNKNOWN,
        str(provenance.get("started") or "-").replace("T", " ").replace("Z", " UTC"),
        duration(seconds) if isinstance(seconds, (int, float)) else "-",
        "-" if seed is None else str(seed),
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def machines_table(machines: Sequence[dict[str, Any]]) -> Table:
    """A row for each property that one of them has."""
    flat = [described(machine) for machine in machines]
    names = list(dict.fromkeys(name for machine in flat for name in machine))
    return Table(
        ["", *(letter(number) for number in range(len(machines)))],
        [[name, *(machine.get(name, "-") for machine in flat)] for name in names],
    )


def described(machine: dict[str, Any]) -> dict[str, str]:
    titles = {
        "cpu": "processor",
        "cores": "cores",
        "memory_gib": "memory [GiB]",
        "system": "system",
        "python": "Python",
    }
    found = {title: str(machine[key]) for key, title in titles.items() if key in machine}
    gpus = machine.get("gpu") or "none"
    found["GPU"] = ("; ".join(map(str, gpus)) if isinstance(gpus, list) else str(gpus)) or "none"
    libraries = machine.get("libraries")
    return found | {str(k): str(v) for k, v in (libraries.items() if isinstance(libraries, dict) else ())}
