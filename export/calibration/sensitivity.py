"""Measures what each layer's quantization does to an edit.

The deployed sampler runs the calibration's edits once, then again along the same trajectories with one layer at a time
quantized and dequantized. The velocity's error is measured at an early, a middle and a late step; the sampler continues
with the recorded velocity. For large models the errors are estimated from the weights, and from calibration's moments
if there are any.
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
from ...model.networks import NETWORKS, NetworkShapes, linear_weights
from ...quant.formats import FORMATS
from ...quant.options import Option
from ...quant.quantize import quantize_weight
from ...quant.quantized_product import QuantizedProduct
from ...quant.recipe import ANY_QUANTIZED, COMPUTE_BYTES, Layer, Recipe, choose_recipe
from ...quant.sensitivity import (
    LayerSensitivity,
    Sensitivity,
    input_error,
    kind_of,
    prior_sensitivity,
    relative_error,
    round_trip,
)
from ...quant.statistics import Statistics
from ...runtime.cache import cache_folder, is_cached
from ...runtime.pipeline import Pipeline
from ..bundle.tokenizer_files import TokenizerFile
from ..edit_sets.samples import Samples
from ..progress import Progress
from .calibrate import calibrate, calibration_digest, outline_bundle
from .samples import apart, batch_size
from .trajectories import EditableNetworks, RecordedEdits, record_edits
from .watched_networks import RESIDENT_BYTES, compute_dtype

PICTURES = 8
"""How many of the most sensitive layers are measured on the final picture too."""

EDITS = 8
"""Edits that errors of the velocity are measured on; more hardly change the ranking of layers."""

PICTURE_EDITS = 4
"""Edits whose final pictures are compared."""

MEASURED_PARAMETERS = RESIDENT_BYTES // 4
"""Models with fewer parameters are measured: their fp32 weights stay in memory. Others are estimated: a pass of FLUX
takes minutes on a CPU, and measuring needs thousands."""

VERSION = 3
"""Of the measurement. Increase it when something else is measured: cached reports are then ignored."""


def measure_sensitivity(
    checkpoint: Checkpoint,
    options: Sequence[Option],
    tokenizers: Mapping[str, TokenizerFile],
    samples: Samples,
    calibrated: bool,
    progress: Progress,
) -> Sensitivity:
    """Measures each layer in each option: the velocity's error and, for the most sensitive layers, the picture's.

    A report of the same model, samples and options is loaded from the cache; its `file` is then its path.

    Args:
        checkpoint: a model of fewer than `MEASURED_PARAMETERS`.
        options: number formats and ranks to quantize layers to.
        tokenizers: the checkpoint's.
        samples: edits to measure on, or those that an export would be calibrated with.
        calibrated: quantize as a calibrated export does, with the statistics of these samples; it is then measured on
            others (`samples.apart`).
        progress: draws a bar.
    """
    check_options(options, calibrated)
    key = sensitivity_digest(checkpoint, options, samples, calibrated)
    cached = cache_folder() / "sensitivity" / f"{key}.json"
    if is_cached(cached):
        with contextlib.suppress(KontextError):  # a damaged file is replaced
            return Sensitivity.load(cached)
    statistics = None
    if calibrated:
        collected, samples = apart(samples, EDITS)
        statistics = calibrate(checkpoint, widest_recipe(checkpoint), tokenizers, collected, progress)
    layers = measured_layers(checkpoint)
    report = Sensitivity(checkpoint.config.name, "velocity", [str(option) for option in options])
    networks = EditableNetworks(checkpoint)
    source = QuantizedWeights(checkpoint, statistics)
    with outline_bundle(checkpoint, networks.recipe, tokenizers) as bundle:
        pipeline = Pipeline(bundle, networks)
        edits = record_edits(pipeline, networks, samples, batch_size(checkpoint.config), EDITS)
        total = (sum(map(len, layers.values())) + 1) * len(options) + PICTURES + 1
        with progress.steps("sensitivity", total) as advance:
            for network, weights in layers.items():
                for weight, shape in weights.items():
                    layer = report.layers.setdefault(network, {})[weight] = LayerSensitivity(shape)
                    for option in options:
                        if option.fits(shape):
                            product, relative = source.product(network, weight, option)
                            with networks.quantized(network, {weight: product}):
                                share, each = velocity_error(edits, network)
                            layer.errors[str(option)], layer.ranges[str(option)] = share, each
                            layer.relative[str(option)] = relative
                        advance(1)
            for option in options:
                with contextlib.ExitStack() as stack:
                    for network, weights in layers.items():
                        fitting = [weight for weight, shape in weights.items() if option.fits(shape)]
                        made = {weight: source.product(network, weight, option)[0] for weight in fitting}
                        stack.enter_context(networks.quantized(network, made))
                    together, _ = velocity_error(edits, "text_encoder_2")
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
        "steps": [step + 1 for step in edits[0].steps],
        "of_steps": edits[0].request.steps,
    }
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_report(report, cached)
    return report


def estimate_sensitivity(
    checkpoint: Checkpoint,
    options: Sequence[Option],
    statistics: Statistics | None,
    progress: Progress,
) -> Sensitivity:
    """Estimates each layer's effect on the velocity without running the model, with one weight in memory at a time.

    The error of a layer's output is computed from the moments in `statistics`, or from the weights if there are none; a
    gain for its kind, measured on the embedded model, converts it to the velocity's.
    """
    check_options(options, statistics is not None)
    layers = measured_layers(checkpoint)
    counts = count_kinds(layers)
    source = QuantizedWeights(checkpoint, statistics)
    method = "weights" if statistics is None else "moments"
    report = Sensitivity(checkpoint.config.name, method, [str(option) for option in options])
    with progress.steps("sensitivity", sum(map(len, layers.values()))) as advance:
        for network, weights in layers.items():
            for weight, shape in weights.items():
                layer = report.layers.setdefault(network, {})[weight] = LayerSensitivity(shape)
                factor = prior_sensitivity(network, weight, counts[kind_of(network, weight)])
                for option in options:
                    if option.fits(shape):
                        relative = source.relative(network, weight, option)
                        layer.relative[str(option)], layer.errors[str(option)] = relative, factor * relative
                advance(1)
    if statistics is not None:
        report.about = dict(statistics.about)
    return report


def write_report(report: Sensitivity, path: Path) -> None:
    write_atomic(path, json.dumps(report.as_json(), indent=1) + "\n")


def measured_layers(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[int, int]]]:
    """Network → weight → [in, out] of every linear that a recipe may quantize."""
    shapes = {name: network.shapes for name, network in checkpoint.networks.items()}
    return quantizable_layers(checkpoint.config, shapes, widest_recipe(checkpoint))


def quantizable_layers(
    config: KontextConfig, shapes: NetworkShapes, recipe: Recipe
) -> dict[str, dict[str, tuple[int, int]]]:
    """Network → weight → [in, out] of the linears that `recipe` quantizes."""
    result: dict[str, dict[str, tuple[int, int]]] = {}
    for network, each in shapes.items():
        linears = linear_weights(network, config)
        for weight, shape in each.items():
            if weight in linears and recipe.layer_of(network, weight, shape[::-1], True).format in FORMATS:
                result.setdefault(network, {})[weight] = (shape[1], shape[0])
    return result


def widest_recipe(checkpoint: Checkpoint) -> Recipe:
    """A recipe that quantizes every layer that may be quantized."""
    return choose_recipe(tuple(NETWORKS), checkpoint.parameters(), None, ANY_QUANTIZED)


@dataclass(frozen=True)
class QuantizedWeights:
    """Quantizes and dequantizes a checkpoint's layers one by one, as an export would store them."""

    checkpoint: Checkpoint
    statistics: Statistics | None

    def product(self, network: str, weight: str, option: Option) -> tuple[QuantizedProduct, float]:
        """A layer as it is deployed, and its relative error: of its output if the moments of its inputs are known, else
        of the weight."""
        original = self.original(network, weight)
        compute = widest_recipe(self.checkpoint).compute["transformer"]
        shape = (original.shape[0], original.shape[1])
        layer = option.layer(network, weight, shape, COMPUTE_BYTES[compute])
        return self.of_layer(network, weight, layer), self.relative(network, weight, option)

    def of_layer(self, network: str, weight: str, layer: Layer) -> QuantizedProduct:
        """A weight, quantized as a layer says."""
        original = self.original(network, weight)
        known = None if self.statistics is None else self.statistics.get(network, weight)
        tensors = quantize_weight(original, layer, compute_dtype(self.checkpoint), known)
        return QuantizedProduct(tensors, layer, (original.shape[0], original.shape[1]))

    def relative(self, network: str, weight: str, option: Option) -> float:
        """The relative error of a layer's output, or without moments of its weight, and that of its rounded inputs."""
        original = self.original(network, weight)
        known = None if self.statistics is None else self.statistics.get(network, weight)
        compute = widest_recipe(self.checkpoint).compute["transformer"]
        rank = option.rank_of((original.shape[0], original.shape[1]), COMPUTE_BYTES[compute])
        quantized = round_trip(original, Layer(option.format, rank), compute_dtype(self.checkpoint), known)
        error = relative_error(original, quantized, None if known is None else known.moments)
        return error + input_error(option, network, weight)

    def original(self, network: str, weight: str) -> Tensor:
        """A weight [in, out]."""
        return self.checkpoint.networks[network].read(weight).t()


def velocity_error(edits: Sequence[RecordedEdits], network: str) -> tuple[float, list[float]]:
    """Energy of the velocity's error relative to the velocity's, over all edits: the mean of the measured steps, and
    each."""
    noise: dict[int, float] = {}
    signal: dict[int, float] = {}
    for batch in edits:
        for total, energies in zip((noise, signal), batch.energies(network), strict=True):
            for step, energy in energies.items():
                total[step] = total.get(step, 0.0) + energy
    # The mean of the ratios, not the ratio of the sums: large velocities of late steps are no more important.
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
    networks: EditableNetworks,
    samples: Samples,
    source: QuantizedWeights,
    advance: Callable[[int], object],
) -> list[dict[str, Any]]:
    """The final picture's PSNR with each of the most sensitive layers quantized to `option`, over a few edits."""
    ranked = sorted(
        ((layer.errors.get(str(option), 0.0), network, weight)
         for network, each in report.layers.items() for weight, layer in each.items()),
        reverse=True,
    )[:PICTURES]  # fmt: skip
    edits = record_edits(pipeline, networks, samples, PICTURE_EDITS, PICTURE_EDITS)
    expected = [picture for batch in edits for picture in batch.pictures("transformer")]
    advance(1)
    result: list[dict[str, Any]] = []
    for _, network, weight in ranked:
        with networks.quantized(network, {weight: source.product(network, weight, option)[0]}):
            pictures = [picture for batch in edits for picture in batch.pictures(network)]
        each = [psnr(*pair) for pair in zip(pictures, expected, strict=True)]
        psnr_mean = round(sum(each) / len(each), 2)
        result.append({"network": network, "weight": weight, "option": str(option), "psnr": psnr_mean})
        advance(1)
    return result


def count_kinds(layers: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """Kind of layer → number of layers of that kind."""
    counts: dict[str, int] = {}
    for network, weights in layers.items():
        for weight in weights:
            kind = kind_of(network, weight)
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def check_options(options: Sequence[Option], calibrated: bool) -> None:
    for option in options:
        if option.inputs and not calibrated:
            raise KontextError(
                f"{option} rounds inputs with scales from a calibration: leave out --calibrate none, or "
                f"+{option.inputs}"
            )
        if option.format not in FORMATS:
            raise KontextError(
                f"{option.format} weights cannot be exported: choose from {', '.join(FORMATS)}"
            )


def sensitivity_digest(
    checkpoint: Checkpoint, options: Sequence[Option], samples: Samples, calibrated: bool
) -> str:
    """SHA-256 of everything that a report depends on."""
    parts = [
        VERSION,
        calibration_digest(checkpoint, widest_recipe(checkpoint), samples),
        [str(option) for option in options],
        calibrated,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
