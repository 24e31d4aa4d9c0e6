"""Runs of edits, judged where they can be."""

from __future__ import annotations

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
    latents: list[Array] = []
    picture = pipe.edit(
        case.picture(),
        case.prompt,
        steps=steps,
        seed=seed,
        callback=lambda _step, _total, x: latents.append(x),
    )
    return EditRun(picture, latents, case.accepts(picture) if case.accepts else None)
