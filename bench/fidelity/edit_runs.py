"""Runs of edits, judged where they can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
from numpy.typing import NDArray

from ...runtime import Pipeline
from ..cases import Case

Array = NDArray[Any]


@dataclass
class EditRun:
    """One edit by one bundle: the picture, the latents after each step, and the judge's verdict, if there is one."""

    picture: PIL.Image.Image
    latents: list[Array]
    success: bool | None


def run_edit(pipe: Pipeline, case: Case, steps: int, seed: int) -> EditRun:
    """An edit alone, as `run_edits`."""
    return run_edits(pipe, [case], steps, [seed])[0]


def run_edits(pipe: Pipeline, cases: Sequence[Case], steps: int, seeds: Sequence[int]) -> list[EditRun]:
    """Edits of pictures of one size in one batch, each with its seed."""
    latents: list[Array] = []
    pictures = pipe.edit(
        [case.picture() for case in cases],
        [case.prompt for case in cases],
        steps=steps,
        seed=seeds,
        callback=lambda _step, _total, x: latents.append(x),
    )
    assert isinstance(pictures, list)  # of a list of prompts
    return [
        EditRun(picture, [x[row : row + 1] for x in latents], case.accepts(picture) if case.accepts else None)
        for row, (case, picture) in enumerate(zip(cases, pictures, strict=True))
    ]
