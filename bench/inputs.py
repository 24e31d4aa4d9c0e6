"""What is edited in a measurement: the picture and prompt given, or a scene that the embedded model knows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image

from ..errors import KontextError
from ..runtime.bundle import Bundle
from ..runtime.images import preferred_size


def command(name: str, module: str) -> list[str]:
    """How to start one of this package's commands: its script beside this interpreter, else `python -m`."""
    script = Path(sys.executable).with_name(name)
    return [str(script)] if script.is_file() else [sys.executable, "-m", module]


def with_cache(folder: Path, words: list[str]) -> list[str]:
    """The command `words`, with `folder` in the place of the user's cache."""
    return ["env", f"XDG_CACHE_HOME={folder}", *words]


def parse_counts(text: str, flag: str = "--steps") -> list[int]:
    """`28,4` as [28, 4]. Raises KontextError unless each is a positive whole number."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise KontextError(f"{flag} takes positive whole numbers, such as 28 or 28,4; not {text!r}")
    return [int(word) for word in words]


def open_picture(path: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise KontextError(f"{path} cannot be read as a picture: {error}") from error


def sizes(bundle: Path, asked: tuple[int, int] | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """(output, reference) as (width, height) each: `asked` or the most square, and where the runtime takes references.

    Both sides get the reference at that size, so that neither resizes it.
    """
    preferred = Bundle.open(bundle).sampler.preferred_sizes
    output = asked or min(preferred, key=lambda size: abs(size[0] - size[1]))
    return output, preferred_size(PIL.Image.new("RGB", output), preferred)


def picture_and_prompt(
    image: Path | None, prompt: str | None, size: tuple[int, int], *, seed: int = 0
) -> tuple[PIL.Image.Image, str]:
    """The picture, at `size` (width, height), and its prompt; whichever is not given comes from a scene."""
    from ..tiny.edits import sample_edit
    from ..tiny.scenes import render

    example = sample_edit(np.random.default_rng(seed), split="test", kind="recolour")
    assert example.source is not None  # a recolouring has something to recolour
    picture = open_picture(image) if image is not None else PIL.Image.fromarray(render(example.source))
    if picture.size != size:
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    return picture, prompt if prompt is not None else example.prompt
