"""The edits that peers with static scales are calibrated on: those that our `kontext-export --fp8` runs for the
embedded model, with the same sampler, seeds and steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TextIO

from tqdm import tqdm

from ....export.calibration.samples import SCENES, batch_size, sample_requests, scene_samples
from ....runtime.backends.protocol import Backend
from ....runtime.backends.torch.backend import read_config
from ....runtime.bundle import Bundle
from ....runtime.pipeline import Pipeline


def run_scenes(
    bundle: Bundle, backend: Backend, count: int = SCENES, steps: int | None = None, bar: TextIO | None = None
) -> None:
    """Runs `count` edits of `export.calibration.samples` on `backend`, up to their latents.

    Args:
        bundle: for its sampler and its tokenizers.
        backend: what is calibrated.
        count: at most `SCENES`, as for our own calibration.
        steps: None: the bundle's, as for our own calibration.
        bar: where to show a bar of progress, if it is a terminal.
    """
    pipeline = Pipeline(bundle, backend)
    settings = replace(bundle.sampler, steps=steps or bundle.sampler.steps)
    batch = batch_size(read_config(bundle))
    total = -(-count // batch) * settings.steps
    shown = bar is not None and bar.isatty()
    with tqdm(
        total=total, desc="calibration", unit="step", leave=False, file=bar, disable=not shown
    ) as advance:
        for request in sample_requests(scene_samples(count), settings, batch):
            texts = pipeline.encode_prompts(request.rows)
            references = pipeline.encode_references(request.rows)
            for rows in request.batches():
                chosen = [request.rows[index] for index in rows]
                pipeline.sample(chosen, request, texts, references, lambda *_: advance.update())
