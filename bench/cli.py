"""`kontext-bench`: benchmarks and their tools, one subcommand each (`registry` lists them)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command import Parser, run_command
from . import provenance
from .registry import SUBCOMMANDS
from .report import check_output


def parser(chosen: str | None) -> Parser:
    """The command line, with the flags of the subcommand `chosen` alone: only its module is imported."""
    root = Parser(
        prog="kontext-bench",
        description="Measures bundles and what makes them; tables on stdout, JSON with --json.",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for entry in SUBCOMMANDS:
        command = commands.add_parser(entry.name, help=entry.summary)
        if entry.name != chosen:
            continue
        module = entry.load()
        command.description = sentence(module.__doc__)
        command.set_defaults(run=module.run, entry=entry)
        module.add_flags(command)
        if entry.measures:
            command.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE as JSON")
    return root


def sentence(doc: str | None) -> str:
    """A module's docstring up to the end of its first paragraph."""
    return " ".join((doc or "").split("\n\n")[0].split())


def paths_read(arguments: argparse.Namespace) -> list[Path]:
    """The paths of a command line but --json's."""
    values = [value for name, value in vars(arguments).items() if name != "json"]
    listed = [each for value in values if isinstance(value, list) for each in value]
    return [each for each in (*values, *listed) if isinstance(each, Path)]


def main(words: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if words is None else words)

    def work() -> int | None:
        arguments = parser(given[0] if given else None).parse_args(given)
        if getattr(arguments, "json", None) is not None:
            check_output(arguments.json, paths_read(arguments))
        if hasattr(arguments, "json"):
            provenance.begin(
                given,
                seed=getattr(arguments, "seed", None),
                warmup=getattr(arguments, "warmup", None),
                state=arguments.entry.state,
            )
        code: int | None = arguments.run(arguments)
        return code

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
