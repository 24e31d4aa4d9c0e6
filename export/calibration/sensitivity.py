"""Measures what each layer's quantization does to an edit: the deployed sampler runs the calibration's edits once, and
again with one layer at a time quantized and back, along the same trajectories.

The error counts at an early, a middle and a late step; the sampler goes on with the reference's velocity in between.
Models too large for that get an estimate from their weights, with the calibration's moments where there are any.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...decibels import psnr
from ...errors import KontextError
from ...files import write_atomic
from ...model.checkpoint import Checkpoint
from ...model.config import KontextConfig
from ...model.networks import NETWORKS
from ...quant.formats import FORMATS
from ...quant.options import Option
from ...quant.recipe import BYTES, Layer, Recipe, choose
from ...quant.sensitivity import LayerSensitivity, Sensitivity, gain, kind_of, relative_error, round_trip
from ...quant.statistics import Statistics
from ...runtime.cache import cache_folder
from ...runtime.pipeline import Pipeline
from ..bundle.tokenizer_files import TokenizerFile
from ..graph.interface import linear_weights
from ..progress import Progress
from .calibrate import BATCH_PIXELS, RESIDENT, calibrate, compute_dtype, outline
from .calibrate import digest as calibration_digest
from .samples import Samples
from .trajectories import Batch, ForcedNetworks, batches

PICTURES = 8
"""Layers, the most sensitive ones, whose effect on the final picture is measured."""

EDITS = 8
"""Edits that errors of the velocity are measured on; the ranking of layers hardly changes with more."""

PICTURE_EDITS = 4
"""Edits whose pictures are compared, at all steps each."""

LARGE = RESIDENT // 4
"""Parameters from which on a layer's error is estimated: one pass of FLUX takes minutes on a CPU, and this needs
thousands, with all weights in memory."""

VERSION = 1
"""Of what is measured: another one makes kept reports worthless."""


def measured_layers(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[int, int]]]:
    """Network → weight → [in, out] of every linear that a recipe may quantize."""
    shapes = {name: network.shapes for name, network in checkpoint.networks.items()}
    return quantizable(checkpoint.config, shapes, candidates(checkpoint))


def quantizable(
    config: KontextConfig, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], recipe: Recipe
) -> dict[str, dict[str, tuple[int, int]]]:
    """Network → weight → [in, out] of the linears that `recipe` quantizes."""
    result: dict[str, dict[str, tuple[int, int]]] = {}
    for network, each in shapes.items():
        linears = linear_weights(network, config)
        for weight, shape in each.items():
            if weight in linears and recipe.layer_of(network, weight, shape[::-1], True).format in FORMATS:
                result.setdefault(network, {})[weight] = (shape[1], shape[0])
    return result


def candidates(checkpoint: Checkpoint) -> Recipe:
    """A recipe that quantizes whatever may be."""
    return choose(tuple(NETWORKS), checkpoint.parameters(), None, "int8")


@dataclass(frozen=True)
class Quantized:
    """A checkpoint's layers as an export would store them, made one by one."""

    checkpoint: Checkpoint
    statistics: Statistics | None

    def read(self, network: str, weight: str, option: Option) -> tuple[Tensor, float]:
        """A layer [in, out] quantized and back, fp32, and its relative error: of its output where the moments of its
        inputs are known, else of the weight."""
        original = self.checkpoint.networks[network].read(weight).t()
        known = None if self.statistics is None else self.statistics.get(network, weight)
        rank = option.rank_of((original.shape[0], original.shape[1]), BYTES[computed(self.checkpoint)])
        quantized = round_trip(original, Layer(option.format, rank), compute_dtype(self.checkpoint), known)
        return quantized, relative_error(original, quantized, None if known is None else known.moments)


def measure(
    checkpoint: Checkpoint,
    options: Sequence[Option],
    tokenizers: Mapping[str, TokenizerFile],
    samples: Samples,
    calibrated: bool,
    progress: Progress,
) -> Sensitivity:
    """Each layer's effect in each option, on the velocity and, for the most sensitive layers, on the picture.

    A report on the same model, samples and options is loaded from the cache; its `file` says so.

    Args:
        checkpoint: a model small enough to be run many times.
        options: what layers are quantized to.
        tokenizers: the checkpoint's.
        samples: edits to measure on.
        calibrated: quantize with what calibration on the same edits finds, as an export with it does.
        progress: draws a bar.
    """
    check_options(options)
    key = digest(checkpoint, options, samples, calibrated)
    kept = cache_folder() / "sensitivity" / f"{key}.json"
    if kept.exists():
        with contextlib.suppress(KontextError):  # a damaged one is made anew
            return Sensitivity.load(kept)
    statistics = None
    if calibrated:
        statistics = calibrate(checkpoint, candidates(checkpoint), tokenizers, samples, progress)
    layers = measured_layers(checkpoint)
    report = Sensitivity(checkpoint.config.name, "velocity", [str(option) for option in options])
    side = checkpoint.config.autoencoder.sample_size
    networks = ForcedNetworks(checkpoint)
    source = Quantized(checkpoint, statistics)
    with outline(checkpoint, networks.recipe, tokenizers) as bundle:
        pipeline = Pipeline(bundle, networks)
        runs = batches(pipeline, networks, samples, EDITS, max(1, BATCH_PIXELS // side**2))
        total = (sum(map(len, layers.values())) + 1) * len(options) + PICTURES + 1
        with progress.steps("sensitivity", total) as advance:
            for network, weights in layers.items():
                for weight, shape in weights.items():
                    layer = report.layers.setdefault(network, {})[weight] = LayerSensitivity(shape)
                    for option in options:
                        if option.fits(shape):
                            quantized, relative = source.read(network, weight, option)
                            with networks.replaced(network, {weight: quantized}):
                                share, each = velocity_error(runs, network)
                            layer.errors[str(option)], layer.ranges[str(option)] = share, each
                            layer.relative[str(option)] = relative
                        advance(1)
            for option in options:
                with contextlib.ExitStack() as stack:
                    for network, weights in layers.items():
                        fitting = [weight for weight, shape in weights.items() if option.fits(shape)]
                        made = {weight: source.read(network, weight, option)[0] for weight in fitting}
                        stack.enter_context(networks.replaced(network, made))
                    together, _ = velocity_error(runs, "text_encoder_2")
                report.sums[str(option)] = {"sum": total_error(report, option), "whole": together}
                advance(1)
            report.pictures = measure_pictures(
                report, options[-1], pipeline, networks, samples, source, advance
            )
    report.about = {
        "samples": samples.name,
        "count": min(EDITS, len(samples.samples)),
        "digest": samples.digest(),
        "calibrated": calibrated,
        "steps": [step + 1 for step in runs[0].steps],
        "of_steps": runs[0].request.steps,
    }
    keep(report, kept)
    return report


def velocity_error(runs: Sequence[Batch], network: str) -> tuple[float, list[float]]:
    """The relative energy of the velocity's error over all edits, at all measured steps and at each."""
    noise: dict[int, float] = {}
    signal: dict[int, float] = {}
    for run in runs:
        for total, part in zip((noise, signal), run.energies(network), strict=True):
            for step, energy in part.items():
                total[step] = total.get(step, 0.0) + energy
    # The mean over steps and not their sum's ratio: late velocities are no more important for being large.
    each = [noise[step] / signal[step] for step in sorted(noise)]
    if not all(map(math.isfinite, each)):
        raise KontextError("the model's velocity is not finite: the checkpoint is damaged")
    return sum(each) / len(each), each


def total_error(report: Sensitivity, option: Option) -> float:
    return math.fsum(
        layer.errors.get(str(option), 0.0) for each in report.layers.values() for layer in each.values()
    )


def measure_pictures(
    report: Sensitivity,
    option: Option,
    pipeline: Pipeline,
    networks: ForcedNetworks,
    samples: Samples,
    source: Quantized,
    advance: Callable[[int], object],
) -> list[dict[str, Any]]:
    """The final picture's PSNR with each of the most sensitive layers in `option`, over a few edits run freely."""
    ranked = sorted(
        ((layer.errors.get(str(option), 0.0), network, weight)
         for network, each in report.layers.items() for weight, layer in each.items()),
        reverse=True,
    )[:PICTURES]  # fmt: skip
    runs = batches(pipeline, networks, samples, PICTURE_EDITS, PICTURE_EDITS)
    expected = [picture for run in runs for picture in run.pictures("transformer")]
    advance(1)
    result: list[dict[str, Any]] = []
    for _, network, weight in ranked:
        with networks.replaced(network, {weight: source.read(network, weight, option)[0]}):
            pictures = [picture for run in runs for picture in run.pictures(network)]
        each = [psnr(*pair) for pair in zip(pictures, expected, strict=True)]
        psnr_mean = round(sum(each) / len(each), 2)
        result.append({"network": network, "weight": weight, "option": str(option), "psnr": psnr_mean})
        advance(1)
    return result


def estimate(
    checkpoint: Checkpoint,
    options: Sequence[Option],
    statistics: Statistics | None,
    progress: Progress,
) -> Sensitivity:
    """Each layer's effect without running the model: one weight in memory at a time.

    The error of a layer's own output comes from the moments in `statistics`, or, without, from the weights; a gain for
    its kind turns it into the velocity's.
    """
    check_options(options)
    layers = measured_layers(checkpoint)
    counts = count_kinds(layers)
    source = Quantized(checkpoint, statistics)
    method = "weights" if statistics is None else "moments"
    report = Sensitivity(checkpoint.config.name, method, [str(option) for option in options])
    with progress.steps("sensitivity", sum(map(len, layers.values()))) as advance:
        for network, weights in layers.items():
            for weight, shape in weights.items():
                layer = report.layers.setdefault(network, {})[weight] = LayerSensitivity(shape)
                factor = gain(network, weight, counts[kind_of(network, weight)])
                for option in options:
                    if option.fits(shape):
                        _, relative = source.read(network, weight, option)
                        layer.relative[str(option)], layer.errors[str(option)] = relative, factor * relative
                advance(1)
    if statistics is not None:
        report.about = dict(statistics.about)
    return report


def count_kinds(layers: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """Kind → layers of it."""
    counts: dict[str, int] = {}
    for network, weights in layers.items():
        for weight in weights:
            kind = kind_of(network, weight)
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def computed(checkpoint: Checkpoint) -> str:
    return candidates(checkpoint).compute["transformer"]


def check_options(options: Sequence[Option]) -> None:
    for option in options:
        if option.format not in FORMATS:
            raise KontextError(
                f"{option.format} weights cannot be exported yet: choose from {', '.join(FORMATS)}"
            )


def digest(checkpoint: Checkpoint, options: Sequence[Option], samples: Samples, calibrated: bool) -> str:
    """Of all that a report depends on."""
    parts = [
        VERSION,
        calibration_digest(checkpoint, candidates(checkpoint), samples),
        [str(option) for option in options],
        calibrated,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def keep(report: Sensitivity, path: Path) -> None:
    """For the next time, where that is possible."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_report(report, path)


def write_report(report: Sensitivity, path: Path) -> None:
    write_atomic(path, json.dumps(report.as_json(), indent=1) + "\n")
