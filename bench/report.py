"""Tables as text and markdown, results as JSON, and the sections of a README that a command rewrites."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import KontextError


@dataclass(frozen=True)
class Table:
    """A heading and rows of ready-made text; the first column is flush left, the others flush right."""

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


def mebibytes(count: float) -> str:
    return f"{count / 2**20:.0f}"


def ratio(ours: float, theirs: float) -> str:
    """How often ours fits into theirs: above 1 is less time (or memory) here."""
    return f"{theirs / ours:.2f}x" if ours > 0 else "-"


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, path.stat().st_mode if path.exists() else 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_json(path: Path, result: Any) -> None:
    write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def replace_section(path: Path, name: str, content: str) -> None:
    """Puts `content` between `<!-- name:begin -->` and `<!-- name:end -->`, in place of what was there."""
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
