"""Makes edits with a bundle, alone and in chains, and measures each result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...decibels import psnr
from ...runtime import Pipeline
from ...runtime.rgb import upright_rgb
from ..fidelity.edit_runs import run_edit
from ..fidelity.picture_metrics import Compare
from .kept import compare_region
from .known_edits import Chain, KnownEdit
from .regions import EditRegion, Region, Size, at_size, changed_part
from .text import error_rate

Values = dict[str, float | None]
"""Of one edit: measure → value, None where it does not apply."""


@dataclass(frozen=True)
class Made:
    """A result: its picture, final latents, and the judge's verdict if there is one."""

    picture: Image.Image
    latents: NDArray[np.float32]
    success: bool | None


@dataclass(frozen=True)
class Instruments:
    """What can be measured here: embeddings of characters, and text."""

    embeddings: Mapping[str, Compare]
    text: bool


def make_edits(
    pipe: Pipeline, edits: Sequence[KnownEdit], steps: int, seed: int, done: Callable[[], object]
) -> list[Made]:
    """Makes all edits, the first with `seed`, each further one with the next; `done` is called after each."""
    results = []
    for number, edit in enumerate(edits):
        results.append(make_edit(pipe, edit, steps, seed + number))
        done()
    return results


def make_edit(pipe: Pipeline, edit: KnownEdit, steps: int, seed: int) -> Made:
    run = run_edit(pipe, edit.case, steps, seed)
    return Made(run.picture, run.latents[-1], run.success)


def make_chain(pipe: Pipeline, chain: Chain, steps: int, seed: int, done: Callable[[], object]) -> list[Made]:
    """Makes the edits of a chain, each of the result before; every turn has the next seed."""
    results: list[Made] = []
    for turn, edit in enumerate(chain):
        case = edit.case
        if results:
            case = replace(case, picture=partial(picture_of, results[-1]))
        results.append(make_edit(pipe, replace(edit, case=case), steps, seed + turn))
        done()
    return results


def picture_of(made: Made) -> Image.Image:
    return made.picture


def source_at(edit: KnownEdit, size: Size) -> Image.Image | None:
    """The edit's picture as the pipeline encodes it, in 8 bits: upright, RGB, resized to the output's size."""
    picture = edit.case.picture()
    if picture is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pipeline has said it
        picture = upright_rgb(picture)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def region_of(edit: KnownEdit, reference: Image.Image) -> EditRegion | None:
    """Where the edit may change the picture, at the size of the reference's result; None without a source."""
    known = edit.region()
    if known is not None:
        return EditRegion(at_size(known.changed, reference.size), known.origin)
    source = source_at(edit, reference.size)
    return None if source is None else EditRegion(changed_part(source, reference), "reference")


def measure(
    made: Made, edit: KnownEdit, reference: Made, region: EditRegion | None, instruments: Instruments
) -> Values:
    """All measures of a result. `reference` is the reference's result of the same edit."""
    source = source_at(edit, made.picture.size)
    kept = None if region is None else ~region.changed
    values: Values = {
        **against(made, reference, kept),
        **{f"source_{name}": value for name, value in regional(made.picture, source, kept).items()},
        "success": None if made.success is None else float(made.success),
    }
    if edit.has_character:
        values["character_success"] = values["success"]
        for name, similarity in instruments.embeddings.items():
            values[name] = None if source is None else similarity(made.picture, source)
    if edit.wanted is not None and instruments.text:
        values |= read_text(made.picture, edit)
    return values


def against(made: Made, reference: Made, kept: Region | None) -> Values:
    """A result beside the reference's: final latents, whole picture, kept region."""
    apart, whole = (
        float(np.square(each, dtype=np.float64).sum())
        for each in (made.latents - reference.latents, reference.latents)
    )
    return {
        "latent_distance": (apart / whole) ** 0.5,
        "psnr": psnr(made.picture, reference.picture),
        **{f"kept_{name}": value for name, value in regional(made.picture, reference.picture, kept).items()},
    }


def regional(picture: Image.Image, other: Image.Image | None, kept: Region | None) -> Values:
    if other is None or kept is None:
        return {"psnr": None, "ssim": None, "delta_e": None}
    return compare_region(picture, other, kept)


def read_text(picture: Image.Image, edit: KnownEdit) -> Values:
    """Character error rate of the wanted text, and whether it is there without an error."""
    assert edit.wanted is not None
    error = error_rate(edit.read(picture), edit.wanted)
    return {"text_error": error, "text_read": float(error == 0)}
