"""Edits with two references by each method of placing them, on one sheet (docs/images/references.png).

The embedded model learned from single references: it shows what the methods do to an edit, not a gain.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime import Pipeline
from ..runtime.images import check_writable
from ..runtime.reference_options import REFERENCE_METHODS
from ..tiny.contact import INK, PAPER, place
from ..tiny.edits import sample_edit
from ..tiny.scenes import render
from .flags import add_seed_flag, at_least

KINDS = ("recolour", "background", "add")
"""Of the edits, one a row."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("references.png"), metavar="FILE", help="(references.png)"
    )
    parser.add_argument("--steps", type=int, default=28, help="sampler steps (28)")
    add_seed_flag(parser, "seed of the scenes and of the noise (0)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, steps=1)
    check_writable(arguments.output)
    pipe = Pipeline.load(arguments.bundle, device="cpu")
    draw_sheet(make_rows(pipe, arguments.steps, arguments.seed)).save(arguments.output)
    print(f"wrote {arguments.output}")


def make_rows(pipe: Pipeline, steps: int, seed: int) -> list[tuple[str, list[Image.Image]]]:
    """Of each kind of edit the prompt, and the pictures: two references, the edit of the first alone, then that of both
    by each method."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind in KINDS:
        edits = [sample_edit(rng, split="test", kind=each) for each in (kind, "recolour")]
        references = [Image.fromarray(render(edit.source)) for edit in edits if edit.source is not None]
        prompt = edits[0].prompt
        pictures = [*references, pipe.edit(references[0], prompt, steps=steps, seed=seed)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a canvas is squashed, which the sheet shows
            for method in REFERENCE_METHODS:
                pictures.append(
                    pipe.edit(references, prompt, steps=steps, seed=seed, reference_method=method)
                )
        rows.append((prompt, pictures))
    return rows


def draw_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], side: int = 128) -> Image.Image:
    """Rows of pictures below their columns' titles, each with its prompt."""
    titles = (
        "reference 1",
        "reference 2",
        "1 alone",
        *(f"1 and 2, {method}" for method in REFERENCE_METHODS),
    )
    gap, line = 10, 20
    font = ImageFont.load_default(13)
    height = line + len(rows) * (side + line + gap)
    sheet = Image.new("RGB", (gap + len(titles) * (side + gap), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        middle = gap + column * (side + gap) + side // 2
        draw.text((middle, line // 2), title, fill=INK, font=font, anchor="mm")
    for row, (prompt, pictures) in enumerate(rows):
        top = line + row * (side + line + gap)
        for column, picture in enumerate(pictures):
            place(sheet, picture, gap + column * (side + gap), top, side)
        draw.text((gap, top + side + line // 2), prompt, fill=INK, font=font, anchor="lm")
    return sheet
