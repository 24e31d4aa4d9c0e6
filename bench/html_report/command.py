"""Makes one HTML page of results: edits with before and after, plots, tables and where they come from.

RESULTS are what benchmarks write with --json, what `kontext-bench demo` writes, and what `kontext-export sensitivity`
writes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import KontextError, one_line
from ..flags import at_least
from ..report import write_text
from .loaded import Loaded, load
from .origin import origin_html
from .page import GENERATOR, Heading, make_page
from .sections import Pictures, Section, first_lines, make_sections

MOST_EDITS = 50


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULT", help="JSON of kontext-bench, or of sensitivity"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(report.html)"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is a report")
    parser.add_argument("--title", metavar="TEXT", help="of the page (the models' names)")
    parser.add_argument(
        "-n", "--count", type=int, default=MOST_EDITS, help=f"edits to show, the worst ({MOST_EDITS})"
    )


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, count=1)
    check_output(arguments.output, arguments.force)
    made = make_report(arguments.results, title=arguments.title, most=arguments.count)
    for line in made.missing:
        print(f"without pictures: {one_line(line)}", file=sys.stderr)
    write_text(arguments.output, made.html)
    print(made.described(arguments.output))


@dataclass(frozen=True)
class Report:
    """A page, how many results and edits it shows, and a line for what could not be shown."""

    html: str
    results: int
    edits: int
    missing: list[str]

    def described(self, path: Path) -> str:
        size = len(self.html.encode())
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
        edits = f", {self.edits} edits with pictures" if self.edits else ""
        noun = "result" if self.results == 1 else "results"
        return f"{self.results} {noun}{edits} in {path} ({shown})"


def make_report(files: Sequence[Path], *, title: str | None = None, most: int = MOST_EDITS) -> Report:
    """The page of these results, with the `most` worst edits of each.

    Raises:
        KontextError: a file cannot be read, or is no result of this version.
    """
    results = [load(path) for path in files]
    pictures = Pictures(most)
    sections = make_sections(results, pictures)
    origin = Section("origin", "Where it comes from", origin_html(results))
    heading = Heading(title or default_title(results), about(results), first_lines(results))
    html = make_page(heading, [*sections, origin])
    return Report(html, len(results), pictures.shown, [*pictures.refused, *summed_up(pictures.missing)])


def default_title(results: Sequence[Loaded]) -> str:
    models = dict.fromkeys(str(each.result["model"]) for each in results if each.result.get("model"))
    return ", ".join(models) if 0 < len(models) <= 3 else "kontext-export"


def about(results: Sequence[Loaded]) -> str:
    names = ", ".join(dict.fromkeys(each.path.name for each in results))
    return f"{len(results)} {'result' if len(results) == 1 else 'results'}: {names}"


def summed_up(missing: Sequence[str]) -> list[str]:
    """One line for all pictures that are missing."""
    if len(missing) < 2:
        return list(missing)
    more = len(missing) - 1
    return [
        f"{missing[0]}; {more} more {'edit has' if more == 1 else 'edits have'} none that can be read either"
    ]


def check_output(path: Path, force: bool) -> None:
    """Checks before the work that the report can be written. Raises KontextError, which says what is in the way."""
    if str(path) == "-":
        raise KontextError("a report is written to a file, not to stdout: name it with -o")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise KontextError(f"{folder} does not exist: make the folder first")
    try:
        tempfile.TemporaryFile(dir=folder).close()
        if not os.path.lexists(path):
            return
        if not is_report(path):
            raise KontextError(f"{path} exists and is not a report: choose another file")
    except OSError as fault:
        raise KontextError(f"{path} cannot be written: {fault.strerror}") from None
    if not force:
        raise KontextError(f"{path} exists: give --force to replace it, or choose another file")


def is_report(path: Path) -> bool:
    """Whether a file was made by this command."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f'name="generator" content="{GENERATOR}'.encode() in file.read(4096)
