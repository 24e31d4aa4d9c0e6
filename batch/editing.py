"""Edits of loaded jobs: those that can be sampled together as one batch, and what became of each."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import BundleError, KontextError
from ..runtime.cli import edit_arguments
from ..runtime.pipeline import Pipeline
from .jobs import Job
from .loading import Loaded
from .rows import IMAGE, PROMPT

OWN = (IMAGE, PROMPT, "seed")
"""Options that may differ between the jobs of a batch."""

WAITING = 4
"""Batches' worth of jobs that may wait for others like them."""


@dataclass(frozen=True)
class Result:
    """What became of a job: a picture or an error."""

    job: Job
    digest: str
    picture: Image.Image | None = None
    seconds: float = 0
    """Of its edit; of a batch, its share."""
    warnings: tuple[str, ...] = ()
    error: str = ""


def edit_all(pipe: Pipeline, jobs: Iterable[Loaded], most: int) -> Iterator[Result]:
    """Edits jobs as they come, up to `most` of one kind together.

    Args:
        pipe: runs the edits.
        jobs: with their pictures.
        most: pictures in a batch. 1: in the order of the jobs, and bit for bit what `kontext-edit` makes.

    Raises:
        BundleError: no job can succeed.
    """
    waiting: dict[object, list[Loaded]] = {}
    for loaded in jobs:
        group = waiting.setdefault(kind_of(loaded), [])
        group.append(loaded)
        if len(group) == most:
            yield from edit_together(pipe, waiting.pop(kind_of(loaded)))
        elif sum(map(len, waiting.values())) >= WAITING * most:
            yield from edit_together(pipe, waiting.pop(next(iter(waiting))))
    for group in waiting.values():
        yield from edit_together(pipe, group)


def kind_of(loaded: Loaded) -> object:
    """What jobs agree in that can be sampled together: all options but `OWN`, and the sizes of their pictures."""
    shared = {name: value for name, value in vars(options_of(loaded)).items() if name not in OWN}
    return repr(sorted(shared.items())), tuple(picture.size for picture in loaded.pictures)


def edit_together(pipe: Pipeline, group: Sequence[Loaded]) -> Iterator[Result]:
    """Edits jobs of one kind as one batch; if that fails, one by one, so that none fails by another's fault."""
    began = time.monotonic()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shared = edit_arguments(options_of(group[0]))
            shared["seed"] = [options_of(each).seed for each in group]
            images, prompts = [each.pictures for each in group], [options_of(each).prompt for each in group]
            pictures = pipe.edit(images, prompts, **shared)
    except BundleError:
        raise
    except (KontextError, MemoryError) as error:
        if len(group) > 1:
            for each in group:
                yield from edit_together(pipe, [each])
            return
        reason = str(error) if isinstance(error, KontextError) else "not enough memory: try a smaller size"
        yield Result(group[0].job, group[0].digest, warnings=group[0].warnings, error=reason)
        return
    seconds = (time.monotonic() - began) / len(group)
    notes = [str(each.message) for each in caught]
    for loaded, picture in zip(group, pictures, strict=True):
        told = tuple(dict.fromkeys([*loaded.warnings, *notes]))
        yield Result(loaded.job, loaded.digest, picture, seconds, told)


def options_of(loaded: Loaded) -> argparse.Namespace:
    assert loaded.job.options is not None  # what could not be read is not edited
    return loaded.job.options
