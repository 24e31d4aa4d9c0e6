"""Draws random edits on one sheet, to look at: `python -P -m kontext.tiny.sheet SHEET.png`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ..command import Parser, run_command
from .contact import contact_sheet
from .edits import KINDS, sample_edit
from .scenes import render


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: draw_sheet(arguments))


def draw_sheet(arguments: list[str] | None) -> None:
    parser = Parser(prog="python -P -m kontext.tiny.sheet", description="Draws random edits on one sheet.")
    parser.add_argument("sheet", metavar="PNG", help="file to write")
    parser.add_argument(
        "--per-kind", type=int, default=3, metavar="N", help="edits of each kind (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows = list(sample_rows(options.seed, options.per_kind))
    contact_sheet(rows, columns=options.per_kind).save(options.sheet)


def sample_rows(seed: int, per_kind: int) -> Iterator[tuple[Image.Image | None, Image.Image, str]]:
    """Random edits of every kind as (before, after, prompt)."""
    rng = np.random.default_rng(seed)
    for kind in (*KINDS, "draw"):
        for _ in range(per_kind):
            edit = sample_edit(rng, kind=kind)
            before = None if edit.source is None else Image.fromarray(render(edit.source))
            yield before, Image.fromarray(render(edit.target)), edit.prompt


if __name__ == "__main__":
    sys.exit(main())
