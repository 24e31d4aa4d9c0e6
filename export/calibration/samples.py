"""The edits that a model is calibrated on: of a user's folder or a data set (`edit_sets`), or scenes of the tiny world
for the embedded model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import KontextError
from ...model.config import KontextConfig
from ...runtime.request import Request, build_request
from ...runtime.sampler_entry import SamplerEntry
from ...tiny.edits import KINDS, sample_edit
from ...tiny.scenes import render
from ..edit_sets.layouts import read_edit_set
from ..edit_sets.samples import Sample, Samples

MIN_SAMPLES = 4
"""Fewer samples would calibrate to single pictures."""

MOST_SAMPLES = 64
"""More of a data set would take hours and change nothing: a share of each of its categories is taken."""

BUILT_IN = "scenes"
"""Name of the built-in set."""

SCENES = 16
"""Samples of the built-in set; each takes a second on two cores."""

BATCH_PIXELS = 1 << 18
"""Pixels that are sampled together: sixteen of the embedded model's pictures, one of FLUX's."""


def read_samples(folder: Path) -> Samples:
    """The edits of a folder, a list or a data set of any layout of `edit_sets`, at most `MOST_SAMPLES`, without those
    whose pictures cannot be decoded.

    Raises:
        KontextError: there are fewer than `MIN_SAMPLES` usable pairs.
    """
    found = read_edit_set(folder).usable(MOST_SAMPLES, seed=0)
    if len(found.samples) < MIN_SAMPLES:
        more = f"; unusable: {'; '.join(found.skipped[:3])}" if found.skipped else ""
        raise KontextError(
            f"{folder} has {len(found.samples)} pictures with instructions, calibration needs {MIN_SAMPLES}: add "
            f"NAME.txt for each NAME.png, or a metadata.jsonl with file_name and prompt{more}"
        )
    return found


def scene_samples(count: int = SCENES) -> Samples:
    """Edits of the tiny world, as the embedded model was trained on: of every kind, none of them held out."""
    rng = np.random.default_rng(0)
    edits = [sample_edit(rng, split="train", kind=KINDS[index % len(KINDS)]) for index in range(count)]
    pictures = [None if edit.source is None else Image.fromarray(render(edit.source)) for edit in edits]
    return Samples(
        BUILT_IN, [Sample(edit.prompt, picture) for edit, picture in zip(edits, pictures, strict=True)]
    )


def apart(samples: Samples, count: int) -> tuple[Samples, Samples]:
    """Edits to collect statistics of, and `count` others to measure on: error feedback fits the edits that it has
    seen, so that on these a layer looks better than it is. The built-in set has more scenes; others are split, where
    enough are left, and else all are used for both."""
    if samples.name == BUILT_IN:
        more = scene_samples(len(samples.samples) + count)
        return samples, replace(more, samples=more.samples[len(samples.samples) :])
    if len(samples.samples) < MIN_SAMPLES + count:
        return samples, samples
    return replace(samples, samples=samples.samples[count:]), replace(
        samples, samples=samples.samples[:count]
    )


def batch_size(config: KontextConfig) -> int:
    """Samples of a model's preferred size to run at once."""
    return max(1, BATCH_PIXELS // config.autoencoder.sample_size**2)


def sample_requests(
    samples: Samples, settings: SamplerEntry, batch: int, count: int | None = None
) -> Iterator[Request]:
    """Requests for the first `count` samples (None: all), at most `batch` at a time; their seeds are 0, 1, …"""
    chosen = samples.samples[:count]
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        yield build_request(
            settings,
            [sample.picture() for sample in part],
            [sample.prompt for sample in part],
            seed=start,
        )
