"""Runs of held-out edits, judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import PIL.Image
from numpy.typing import NDArray

from ...runtime import Pipeline
from ...tiny.edits import Edit
from ...tiny.judge import judge
from ...tiny.scenes import render

Array = NDArray[Any]


@dataclass
class EditRun:
    """One edit by one bundle: the picture, the latents after each step, and the judge's verdict."""

    picture: PIL.Image.Image
    latents: list[Array]
    success: bool


def run_edit(pipe: Pipeline, edit: Edit, steps: int, seed: int) -> EditRun:
    latents: list[Array] = []
    source = None if edit.source is None else PIL.Image.fromarray(render(edit.source))
    picture = pipe.edit(
        source, edit.prompt, steps=steps, seed=seed, callback=lambda _step, _total, x: latents.append(x)
    )
    return EditRun(picture, latents, bool(judge(picture, edit).success))
