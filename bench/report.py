"""Tables as text and Markdown, results as JSON, and the sections of a document that a command rewrites."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..files import write_atomic
from .provenance import stamped

NUMBERS = re.compile(r"\[\s*\n\s*((?:(?:-?[\d.]+(?:e[+-]?\d+)?|null|true|false),?\s*)+)\]")
"""A list of nothing but numbers in indented JSON. Strings in JSON have no line breaks."""


@dataclass(frozen=True)
class Table:
    """A header and rows of formatted text; the first column is left-aligned, the others right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def widths(self) -> list[int]:
        columns = zip(self.header, *self.rows, strict=True)
        return [max(map(len, column)) for column in columns]

    def text(self) -> str:
        widths = self.widths()

        def line(row: Sequence[str]) -> str:
            others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            return "  ".join([row[0].ljust(widths[0]), *others])

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([line(self.header), rule, *map(line, self.rows)])

    def markdown(self) -> str:
        rules = ["---", *["---:"] * (len(self.header) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.header, rules, *self.rows))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if seconds < 1 else f"{seconds * 1000:.0f}"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.0f}"


def ratio(ours: float, theirs: float) -> str:
    """theirs / ours: above 1 where ours takes less time or memory."""
    return f"{theirs / ours:.2f}x" if ours > 0 else "-"


def finish(result: dict[str, Any], tables: Sequence[Table], footer: str, json_file: Path | None) -> None:
    """Prints a benchmark's tables and footer, and writes the result to `json_file` (`--json`), if there is one."""
    for table in tables:
        print(table.text(), end="\n\n")
    print(footer)
    if json_file is not None:
        write_result(json_file, result)
        print(f"written to {json_file}")


def check_output(path: Path, read: Sequence[Path] = ()) -> None:
    """Checks before the work that `write_text` can write `path`, and that it is none of the files that are `read`.
    Nothing is left behind.

    Raises:
        KontextError: says what is in the way.
    """
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        if path.is_dir():
            raise KontextError(f"cannot write {path}: it is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise KontextError(f"cannot write {path}: it is no regular file")
        if not folder.is_dir():
            raise KontextError(f"cannot write {path}: {folder} is no folder")
        tempfile.TemporaryFile(dir=folder).close()
        for each in read:
            if each.exists() and path.exists() and each.samefile(path):
                raise KontextError(f"cannot write {path}: it is read too; name another file")
    except OSError as fault:
        raise KontextError(f"cannot write {path}: {fault.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Writes `path` atomically, and makes its folder. Raises KontextError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as fault:
        raise KontextError(f"cannot write {path}: {fault.strerror}") from None


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a benchmark's result with its schema's version and its provenance."""
    write_json(path, stamped(result))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON: an entry a line, and a line for a list of numbers."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_text(path, NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def replace_section(path: Path, name: str, content: str) -> None:
    """Replaces what is between `<!-- name:begin -->` and `<!-- name:end -->` by `content`.

    Raises:
        KontextError: the document cannot be read or written, or it has no such section.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from error
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise KontextError(f"{path} has no section between {begin} and {end}")
    write_text(path, f"{head}{begin}\n{content.strip()}\n{end}{tail}")
