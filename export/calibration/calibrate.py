"""Calibration: runs the user's edits with the deployed sampler, and collects statistics of the inputs of every linear
that will be quantized, at all steps.

The sampler is `runtime.Pipeline` itself, with the networks in PyTorch, so measured inputs are those of real edits.
Statistics are cached: the same model and samples are never run twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import KontextError
from ...files import replacing
from ...model.checkpoint import Checkpoint
from ...quant.recipe import BIG_MODEL, Recipe
from ...quant.statistics import VERSION, Statistics
from ...runtime.bundle import Bundle
from ...runtime.cache import cache_folder, is_cached
from ...runtime.pipeline import Pipeline
from ...temporary_folder import temporary_folder
from ..bundle.manifest import build_manifest
from ..bundle.tokenizer_files import TokenizerFile
from ..edit_sets.samples import Samples
from ..progress import Progress
from .samples import batch_size, sample_requests
from .shipped import find_shipped
from .watched_networks import WatchedNetworks, watched_linears

NOT_RUN = "vae_decoder"
"""The network that calibration does not run: sampled latents are not decoded. Its weights are rounded to nearest."""


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    tokenizers: Mapping[str, TokenizerFile],
    samples: Samples,
    progress: Progress,
) -> Statistics:
    """Statistics of the inputs of all linears that `recipe` quantizes, over all steps of the samples' edits.

    Those of the same model and samples are loaded from what is shipped or from the cache; their `file` is then its
    path.

    Raises:
        KontextError: an input is NaN or infinite, or the recipe needs those of a network that calibration does not run.
    """
    check_networks_run(checkpoint, recipe)
    if (shipped := find_shipped(checkpoint, recipe, samples)) is not None:
        return shipped
    key = calibration_digest(checkpoint, recipe, samples)
    cached = cache_folder() / "calibration" / f"{key}.safetensors"
    if is_cached(cached):
        with contextlib.suppress(KontextError):  # a damaged file is replaced
            return Statistics.load(cached)
    statistics = collect(checkpoint, recipe, tokenizers, samples, progress)
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as temporary:
            statistics.save(temporary)
    return statistics


def check_networks_run(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raises KontextError for a layer of `NOT_RUN` whose inputs `recipe` needs to know."""
    network = checkpoint.networks[NOT_RUN]
    for weight in watched_linears(checkpoint, recipe)[NOT_RUN]:
        layer = recipe.layer_of(NOT_RUN, weight, network.shapes[weight][::-1], True)
        if layer.centred or layer.scaled or layer.has_input_scale:
            raise KontextError(
                f"calibration does not run {NOT_RUN}, and the recipe needs statistics of {weight}: leave out its "
                "static scales, centred and scaled there"
            )


def collect(
    checkpoint: Checkpoint,
    recipe: Recipe,
    tokenizers: Mapping[str, TokenizerFile],
    samples: Samples,
    progress: Progress,
) -> Statistics:
    """As `calibrate`, without looking for statistics or keeping them."""
    statistics = Statistics(about=describe_calibration(checkpoint, samples))
    networks = WatchedNetworks(checkpoint, recipe, statistics)
    batch = batch_size(checkpoint.config)
    with outline_bundle(checkpoint, recipe, tokenizers) as bundle:
        pipeline = Pipeline(bundle, networks, low_memory=checkpoint.parameters() >= BIG_MODEL)
        batches = -(-len(samples.samples) // batch)
        with progress.steps("calibration", batches * checkpoint.config.sampler.steps) as advance:
            for request in sample_requests(samples, bundle.sampler, batch):
                texts = pipeline.encode_prompts(request.rows)
                references = pipeline.encode_references(request.rows)
                for rows in request.batches():
                    chosen = [request.rows[index] for index in rows]
                    pipeline.sample(chosen, request, texts, references, lambda *_: advance(1))
    return statistics


def calibration_digest(checkpoint: Checkpoint, recipe: Recipe, samples: Samples) -> str:
    """SHA-256 of everything that the statistics depend on: weights, LoRAs, samples, sampler, watched linears."""
    parts = {
        "version": VERSION,
        "files": checkpoint.identity(),
        "loras": [[lora.digest, lora.weight] for lora in checkpoint.loras],
        "samples": samples.digest(),
        "sampler": repr(checkpoint.config.sampler),
        "prompts": checkpoint.config.text_encoder_2.max_length,
        "watched": watched_linears(checkpoint, recipe),
        "attention": recipe.attention,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def describe_calibration(checkpoint: Checkpoint, samples: Samples) -> dict[str, object]:
    """The manifest's entry for a calibration."""
    sampler = checkpoint.config.sampler
    return {
        "samples": samples.name,
        "count": len(samples.samples),
        "skipped": len(samples.skipped),
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "digest": samples.digest(),
    }


@contextlib.contextmanager
def outline_bundle(
    checkpoint: Checkpoint, recipe: Recipe, tokenizers: Mapping[str, TokenizerFile]
) -> Iterator[Bundle]:
    """The parts of the bundle to be exported that a pipeline needs beside a backend: constants and tokenizers."""
    with temporary_folder("calibration") as name:
        folder = Path(name)
        (folder / "tokenizers").mkdir()
        for key, tokenizer in tokenizers.items():
            (folder / "tokenizers" / f"{key}.json").write_text(tokenizer.text, encoding="utf-8")
        manifest = json.loads(json.dumps(build_manifest(checkpoint, recipe, tokenizers, {})))
        yield Bundle.outline(folder, manifest)
