"""The edits that fidelity benchmarks make: held-out scenes of the tiny world, which the embedded judge knows, or a
share of a data set (`export.edit_sets`), which nobody here judges."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import KontextError, one_line
from ..export.edit_sets.layouts import read_edit_set
from ..export.edit_sets.samples import Sample, Samples
from ..tiny.edits import KINDS, Edit
from ..tiny.judge import judge
from ..tiny.scenes import render
from .edits import held_out


@dataclass(frozen=True)
class Case:
    """An edit; `picture` reads or draws its reference, None for text-to-image."""

    key: str
    category: str
    prompt: str
    picture: Callable[[], Image.Image | None]
    accepts: Callable[[Image.Image], bool] | None
    """Whether a result does what was asked; None: nobody judges."""


def scene_cases(count: int, seed: int) -> list[Case]:
    """`count` held-out edits of each kind; the same seed gives the same."""
    return [
        scene_case(f"{kind}-{number}", edit)
        for kind in KINDS
        for number, edit in enumerate(held_out(kind, count, seed))
    ]


def scene_case(key: str, edit: Edit) -> Case:
    def picture() -> Image.Image | None:
        return None if edit.source is None else Image.fromarray(render(edit.source))

    return Case(key, edit.kind, edit.prompt, picture, lambda result: bool(judge(result, edit).success))


def data_cases(path: Path, count: int, seed: int, language: str = "en") -> list[Case]:
    """`count` edits of a data set, as `usable_samples`."""
    return [sample_case(each) for each in usable_samples(read_edit_set(path, language), path, count, seed)]


def usable_samples(every: Samples, path: Path, count: int, seed: int) -> Sequence[Sample]:
    """`count` samples of the data set at `path`, a share of each category; what cannot be used is named on stderr and
    left out.

    Raises:
        KontextError: it has no edits that can be used.
    """
    found = every.usable(count, seed)
    for line in found.skipped:
        print(f"skipped: {one_line(line)}", file=sys.stderr)
    if not found.samples:
        raise KontextError(f"{path} has no edits that can be used")
    return found.samples


def sample_case(sample: Sample) -> Case:
    return Case(sample.key, sample.category, sample.prompt, sample.picture, None)


def success_rate(accepted: Sequence[bool | None]) -> float | None:
    """Of those that were judged; None if none was."""
    judged = [each for each in accepted if each is not None]
    return round(sum(judged) / len(judged), 4) if judged else None
