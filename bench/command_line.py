"""What the bench's command lines have in common: a module's parser, what is shown in the end, the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import KontextError
from .report import Table


def module_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m kontext.bench.NAME`, which the module's docstring describes up to its first colon."""
    parser = argparse.ArgumentParser(
        prog=f"python -m kontext.bench.{name}", description=(doc or "").split(":")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return parser


def show(tables: Sequence[Table], footer: str) -> None:
    for table in tables:
        print(table.text(), end="\n\n")
    print(footer)


def exit_code(work: Callable[[], int | None]) -> int:
    """Does `work` and returns its code, 0 for None: 2 for what the user can mend, on one line; 130 after Ctrl-C."""
    try:
        return work() or 0
    except KontextError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
