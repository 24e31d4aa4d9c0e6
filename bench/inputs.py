"""The picture and prompt that a benchmark edits: the user's, or a scene that the embedded model was trained for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from ..runtime.bundle import Bundle
from ..runtime.images import open_picture
from ..runtime.sizes import checked_size


def output_size(bundle: Path, requested: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of the output, and of the reference, so that no side has to resize it: `requested`, or the most
    square of the preferred sizes."""
    sampler = Bundle.open(bundle).sampler
    preferred = sampler.preferred_sizes
    return (
        checked_size(requested, sampler)
        if requested
        else min(preferred, key=lambda size: abs(size[0] - size[1]))
    )


def picture_and_prompt(
    image: Path | None, prompt: str | None, size: tuple[int, int], *, seed: int = 0
) -> tuple[PIL.Image.Image, str]:
    """The picture resized to `size` (width, height), and the prompt; None is filled in from a generated scene."""
    from ..tiny.edits import sample_edit
    from ..tiny.scenes import render

    example = sample_edit(np.random.default_rng(seed), split="test", kind="recolour")
    assert example.source is not None  # a recolouring has a source
    picture = (
        PIL.Image.fromarray(render(example.source)) if image is None else open_picture(image).convert("RGB")
    )
    if picture.size != size:
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    return picture, prompt if prompt is not None else example.prompt
