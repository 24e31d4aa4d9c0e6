"""Compares two results of the same benchmark: what changed, and what is noise.

Exit code 1 if a figure is worse by more than the threshold and by more than noise, 0 if none is, 2 if the results
cannot be compared, or none of their figures has runs enough.
"""

from __future__ import annotations

import argparse
import re
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import KontextError, one_line
from ..number_formats import formats_line
from ..registry import Result
from ..report import Table, finish
from ..result_file import in_words, read_result
from .figures import COMPARABLE, NOT_COMPARABLE, Comparable, Figure, figures_of
from .kinds import KINDS, LEAST_ERROR, show_change
from .verdicts import FEW, WORSE, Rules, judge_figures

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

MACHINE = ("cpu", "cores", "memory_gib", "gpu")
"""Entries of a machine's description that make it another one."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A.json", help="what --json wrote: the base")
    parser.add_argument("after", type=Path, metavar="B.json", help="what is compared with it")
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="smaller changes of time, memory, rates and metrics' errors do not count; points of success (5%%)",
    )
    parser.add_argument(
        "--threshold-db", type=not_negative, default=0.5, metavar="DB", help="the same for decibels (0.5)"
    )
    parser.add_argument(
        "--alpha",
        type=probability,
        default=0.05,
        metavar="SHARE",
        help="differences that chance makes more often than this are noise (5%%)",
    )
    parser.add_argument(
        "--across-machines", action="store_true", help="compare times of different machines all the same"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison to FILE as JSON")


def share(text: str) -> float:
    """`5%` as 0.05."""
    if not re.fullmatch(r"\d+(\.\d+)?%", text) or float(text[:-1]) > 1000:
        raise argparse.ArgumentTypeError(f"takes a share in percent, such as 5%, not {text!r:.40}")
    return float(text[:-1]) / 100


def probability(text: str) -> float:
    """A share above 0 % and below 100 %."""
    value = share(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"takes a share above 0% and below 100%, not {text!r:.40}")
    return value


def not_negative(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"takes a number of decibels, such as 0.5, not {text!r:.40}")
    return float(text)


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 if something is worse, else 0."""
    rules = Rules(arguments.threshold, arguments.threshold_db, arguments.alpha)
    try:
        result = compare(arguments.before, arguments.after, rules, across_machines=arguments.across_machines)
    except FAULTS as fault:
        traceback.print_exc()  # a bug; its exit code must not say that something is worse
        raise KontextError(f"the comparison failed: {fault}") from None
    finish(result, tables(result), footer(result), arguments.json)
    if not tested(result):
        raise KontextError(f"nothing could be compared: {untested(result)}")
    return 1 if regressions(result) else 0


def compare(before: Path, after: Path, rules: Rules, *, across_machines: bool = False) -> Result:
    """Both results, figure by figure, as JSON.

    Raises:
        KontextError: a file is no result, the results are of different benchmarks, models, settings or (of times)
            machines, or they have no figure in common.
    """
    paths = (before, after)
    results = [read_result(path) for path in paths]
    comparable = kind_of(results, paths)
    for path, each in zip(paths, results, strict=True):
        if "schema" not in each:
            raise KontextError(
                f"{path} is from before results kept the value of every run: measure it again with this version"
            )
        check_origin(each, path)
    check_settings(results, paths, comparable)
    check_machines(results, paths, comparable, across_machines)
    first, second = (read_figures(each, path, comparable) for path, each in zip(paths, results, strict=True))
    try:
        rows = judge_figures(first, second, rules)
    except ValueError as error:
        raise KontextError(str(error)) from None
    if not rows:
        raise KontextError(
            f"{before} and {after} have no figure in common: {some(first)}; and {some(second)}"
        )
    return {
        "what": "comparison",
        "of": results[0]["what"],
        "results": [described(path, each) for path, each in zip(paths, results, strict=True)],
        "threshold": rules.threshold,
        "threshold_db": rules.threshold_db,
        "alpha": rules.alpha,
        "figures": rows,
        "only_in_one": [
            [name for name in one if name not in other] for one, other in ((first, second), (second, first))
        ],
        "libraries": changed_libraries(results),
    }


def kind_of(results: Sequence[Result], paths: Sequence[Path]) -> Comparable:
    first, second = (each["what"] for each in results)
    if first != second:
        raise KontextError(
            f"{paths[0]} is a result of {first!r:.40} and {paths[1]} of {second!r:.40}: give two of the same benchmark"
        )
    if first in NOT_COMPARABLE:
        raise KontextError(f"results of {first!r} cannot be compared: {NOT_COMPARABLE[first]}")
    if first not in COMPARABLE:
        raise KontextError(f"{paths[0]} holds {first!r:.60}, which no benchmark of this version measures")
    return COMPARABLE[first]


def check_origin(result: Result, path: Path) -> None:
    """Raises KontextError unless a result's machine and provenance are what the schema says."""
    machine, provenance = result.get("machine"), result.get("provenance")
    good = isinstance(machine, dict) and isinstance(machine.get("libraries"), dict)
    if not good or not isinstance(provenance, dict):
        raise KontextError(f"{path} does not say where it comes from (machine, provenance): measure it again")
    source, load = provenance.get("source"), provenance.get("load_average")
    known = source is None or (isinstance(source, dict) and isinstance(source.get("commit"), str))
    if not known or not (load is None or (isinstance(load, list) and load)):
        raise KontextError(f"{path} has a provenance that cannot be read: measure it again")


def check_settings(results: Sequence[Result], paths: Sequence[Path], comparable: Comparable) -> None:
    for name in comparable.settings:
        first, second = (each.get(name) for each in results)
        if first != second:
            raise KontextError(
                f"{paths[0]} and {paths[1]} cannot be compared: {name} is {first!r:.60} and {second!r:.60}"
            )
    if all(isinstance(each.get("precision"), str) for each in results):
        first, second = map(formats_line, results)
        if first != second:
            warnings.warn(f"the bundles are {first} and {second}", stacklevel=2)


def check_machines(
    results: Sequence[Result], paths: Sequence[Path], comparable: Comparable, across: bool
) -> None:
    machines = [each["machine"] for each in results]
    different = [name for name in MACHINE if machines[0].get(name) != machines[1].get(name)]
    if not different:
        return
    name = different[0]
    first, second = (machine.get(name) for machine in machines)
    text = f"measured on different machines: {name} is {first!r:.80} and {second!r:.80}"
    if comparable.timed and not across:
        raise KontextError(
            f"{paths[0]} and {paths[1]} were {text}; --across-machines compares them all the same"
        )
    warnings.warn(f"the results were {text}", stacklevel=2)


def read_figures(result: Result, path: Path, comparable: Comparable) -> dict[str, Figure]:
    try:
        return figures_of(result, comparable)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise KontextError(
            f"{path} is not a result of this benchmark ({in_words(fault)}): measure it again"
        ) from None


def some(figures: dict[str, Figure]) -> str:
    names = list(figures)
    return f"{'; '.join(names[:3])}{'; …' if len(names) > 3 else ''}" if names else "none"


def described(path: Path, result: Result) -> dict[str, Any]:
    return {
        "file": path.name,
        **{name: result["provenance"].get(name) for name in ("started", "source", "load_average")},
    }


def changed_libraries(results: Sequence[Result]) -> dict[str, list[str | None]]:
    """Library → its versions, of those that differ; Python and the system are among them."""
    machines = [each["machine"] for each in results]
    versions = [
        {**each["libraries"], "python": each.get("python"), "system": each.get("system")} for each in machines
    ]
    names = list(dict.fromkeys([*versions[0], *versions[1]]))
    return {
        name: [each.get(name) for each in versions]
        for name in names
        if versions[0].get(name) != versions[1].get(name)
    }


def regressions(result: Result) -> list[str]:
    return [row["name"] for row in result["figures"] if row["verdict"] == WORSE]


def tested(result: Result) -> list[str]:
    """The figures that have runs enough to tell a change from noise, or need none."""
    return [row["name"] for row in result["figures"] if row["verdict"] != FEW]


def untested(result: Result) -> str:
    count = len(result["figures"]) - len(tested(result))
    return f"{count} {'figure' if count == 1 else 'figures'} had too few runs to tell"


def tables(result: Result) -> list[Table]:
    """A row for each figure."""
    header = ["figure", "A", "B", "change", "95 % interval", "p", "verdict"]
    return [Table(header, [row_of(row) for row in result["figures"]])]


def row_of(row: dict[str, Any]) -> list[str]:
    kind = KINDS[row["kind"]]

    def shown(value: float | None, show: Callable[[float], str]) -> str:
        return "-" if value is None else show(value)

    def change(value: float) -> str:
        return show_change(kind, value)

    interval = (
        "-" if row["interval"] is None else " to ".join(shown(each, change) for each in row["interval"])
    )
    return [
        f"{row['name']} [{kind.unit}]" if kind.unit else row["name"],
        shown(row["a"], kind.show),
        shown(row["b"], kind.show),
        shown(row["change"], change),
        interval,
        shown(row["p"], lambda p: "<0.001" if p < 0.001 else f"{p:.3f}"),
        row["verdict"],
    ]


def footer(result: Result) -> str:
    """What was compared with what, by which rules, and what got worse."""
    lines = [f"{letter}: {origin(each)}" for letter, each in zip("AB", result["results"], strict=True)]
    if result["libraries"]:
        changes = (
            f"{name} {before or 'not there'} → {after or 'not there'}"
            for name, (before, after) in result["libraries"].items()
        )
        lines.append(f"Versions that differ: {'; '.join(map(one_line, changes))}.")
    for letter, names in zip("AB", result["only_in_one"], strict=True):
        if names:
            lines.append(f"Only in {letter}: {'; '.join(names)}.")
    percent = f"{100 * result['threshold']:.3g}"
    lines.append(
        f"Worse or better is what changed by more than {percent} % of A's value (success: {percent} points; ratios: "
        f"{result['threshold_db']:g} dB; likenesses: {percent} % of the distance of A's value from the perfect one, "
        f"and {LEAST_ERROR:g} of that) and, where there are several runs, by more than noise (p < {result['alpha']:g})."
    )
    return "\n".join([*lines, conclusion(result)])


def conclusion(result: Result) -> str:
    """What is worse, and how many figures nothing is known of."""
    if not tested(result):
        return f"Nothing could be compared: {untested(result)}."
    worse = regressions(result)
    said = f"Worse: {'; '.join(worse)}." if worse else "Nothing is worse."
    few = len(tested(result)) < len(result["figures"])
    return f"{said} {untested(result)}." if few else said


def origin(described: dict[str, Any]) -> str:
    source = described.get("source") or {}
    commit = (
        f", commit {source['commit'][:12]}{', modified' if source.get('modified') else ''}" if source else ""
    )
    started = f", {described['started']}" if described.get("started") else ""
    load = f", load {described['load_average'][0]}" if described.get("load_average") else ""
    return one_line(f"{described['file']}{commit}{started}{load}")
