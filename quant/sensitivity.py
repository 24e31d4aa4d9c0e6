"""How much quantizing each layer changes the denoiser's output: a report as data, measured or estimated.

Measured: the energy of the velocity's error over the velocity's, with one layer quantized. Estimated: the relative
error of the layer's output, times a factor for its kind that was measured on the embedded model (`sensitivity_prior`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import KontextError
from ..regular_files import MAX_JSON_BYTES, read_json
from .options import Option
from .quantize import dequantize_weight, quantize_weight
from .recipe import Layer
from .sensitivity_prior import SENSITIVITY_PRIOR
from .statistics import InputStatistics

FORMAT, VERSION = "kontext-sensitivity", 1

METHODS = {
    "velocity": "measured on the velocity",
    "moments": "estimated from the error of each layer's output over the calibration's inputs",
    "weights": "estimated from the error of each layer's weights",
    "shapes": "estimated from the layers' shapes alone, for normal weights",
}

SAMPLE_COLUMNS = 64
"""Output channels of the random weight that stands for one that is not read."""


@dataclass
class LayerSensitivity:
    """Of one layer of `shape` [in, out], by option: relative energies of the error of the velocity (`errors`), of the
    layer's output (`relative`), and of the velocity in the early, middle and late steps (`ranges`; empty: not
    measured).
    """

    shape: tuple[int, int]
    errors: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    ranges: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Sensitivity:
    """Of a model: network → weight → layer. `sums` has, by option, the sum of all layers' errors and the error with all
    of them quantized; `pictures` the final picture's PSNR in dB with one layer quantized."""

    model: str
    method: str
    options: list[str]
    layers: dict[str, dict[str, LayerSensitivity]] = field(default_factory=dict)
    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    file: Path | None = field(default=None, compare=False)
    """What it was loaded from."""

    def as_json(self) -> dict[str, Any]:
        layers = {
            network: {
                weight: {
                    key: value
                    for key, value in (
                        ("shape", list(layer.shape)),
                        ("errors", layer.errors),
                        ("relative", layer.relative),
                        ("ranges", layer.ranges),
                    )
                    if value
                }
                for weight, layer in each.items()
            }
            for network, each in self.layers.items()
        }
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "model": self.model,
            "method": self.method,
            "options": self.options,
            "about": self.about,
            "sums": self.sums,
            "pictures": self.pictures,
            "layers": layers,
        }

    @classmethod
    def load(cls, path: Path) -> Sensitivity:
        """Reads a report. Raises KontextError for anything else."""
        try:
            data = read_json(path, MAX_JSON_BYTES, "a report")
            if data["format"] != FORMAT or data["format_version"] != VERSION:
                raise ValueError(f"expected format {FORMAT!r}, version {VERSION}")
            layers = {
                network: {weight: read_layer(layer) for weight, layer in each.items()}
                for network, each in data["layers"].items()
            }
            if data["method"] not in METHODS:
                raise ValueError(f"unknown method {data['method']!r}")
            for option in data["options"]:
                Option.parse(option)
            return cls(
                str(data["model"]),
                data["method"],
                list(data["options"]),
                layers,
                dict(data["sums"]),
                list(data["pictures"]),
                dict(data["about"]),
                path,
            )
        except OSError as fault:
            raise KontextError(f"cannot read {path}: {fault.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, KontextError) as fault:
            raise KontextError(f"{path} is not a report of kontext-export sensitivity: {fault}") from None

    def error(self, network: str, weight: str, shape: tuple[int, int], option: Option) -> float:
        """The energy of the velocity's error that quantizing a layer adds.

        Raises:
            KontextError: the report lacks the layer or the option, so it is of another model.
        """
        layer = self.layers.get(network, {}).get(weight)
        if layer is None or layer.shape != shape or str(option) not in layer.errors:
            raise KontextError(
                f"the sensitivity report is of {self.model} in {', '.join(self.options)} and lacks {network}: {weight} "
                f"{list(shape)} in {option}: measure this model with kontext-export sensitivity"
            )
        return layer.errors[str(option)]


def read_layer(data: Mapping[str, Any]) -> LayerSensitivity:
    rows, columns = data["shape"]
    errors = {str(key): float(value) for key, value in data["errors"].items()}
    if not all(0 <= value < math.inf for value in errors.values()):
        raise ValueError("an error is not a finite number of 0 or more")
    return LayerSensitivity(
        (int(rows), int(columns)), errors, dict(data.get("relative", {})), dict(data.get("ranges", {}))
    )


def round_trip(
    weight: Tensor, layer: Layer, dtype: torch.dtype, statistics: InputStatistics | None
) -> Tensor:
    """`weight` [in, out] quantized and dequantized, fp32."""
    return dequantize_weight(quantize_weight(weight, layer, dtype, statistics), layer)


def relative_error(weight: Tensor, quantized: Tensor, moments: Tensor | None) -> float:
    """Energy of the error of a layer's output, x @ (quantized - weight), over that of its output.

    `moments` are the inputs' second moments in diagonal blocks; without them inputs count as white noise, which gives
    the relative error of the weights.
    """
    weight = weight.float()
    error = quantized - weight
    if moments is None:
        noise, signal = error.square().sum(), weight.square().sum()
    else:
        size = moments.shape[1]
        noise, signal = (
            sum(
                ((block @ part) * part).sum().clamp(min=0)
                for block, part in zip(moments, each.split(size), strict=True)
            )
            for each in (error, weight)
        )
    return float(noise / signal) if float(signal) > 0 else 0.0


def kind_of(network: str, weight: str) -> str:
    """A layer's kind: its name without the block's number."""
    return f"{network}/{re.sub(r'[.][0-9]+', '', weight, count=1)}"


def prior_sensitivity(network: str, weight: str, count: int) -> float:
    """Energy of the velocity's error over the relative energy of the layer's error, where the network has `count`
    layers of its kind: in a residual network each of them adds one part of `count`."""
    known = SENSITIVITY_PRIOR.get(kind_of(network, weight))
    if known is None:
        same = [value for kind, value in SENSITIVITY_PRIOR.items() if kind.startswith(f"{network}/")]
        known = sum(same) / len(same) if same else 1.0
    return known / count


def measured_prior(report: Sensitivity, option: str) -> dict[str, float]:
    """The table `SENSITIVITY_PRIOR` from a measured report: kind → sum over its layers of the velocity's error over the
    relative error of the layer."""
    prior: dict[str, float] = {}
    for network, layers in report.layers.items():
        for weight, layer in layers.items():
            if layer.relative.get(option, 0.0) > 0:
                kind = kind_of(network, weight)
                prior[kind] = prior.get(kind, 0.0) + layer.errors[option] / layer.relative[option]
    return prior


def normal_error(option: Option, shape: tuple[int, int], compute_bytes: int) -> float:
    """The relative error that an option leaves in a normally distributed weight of `shape` [in, out].

    The branch takes its share of the weight's energy first: the largest singular values of a random matrix are about
    √in + √out, and the squares of all add up to in · out.
    """
    rows, columns = shape
    rank = option.rank_of(shape, compute_bytes)
    taken = rank * (math.sqrt(rows) + math.sqrt(columns)) ** 2 / (rows * columns)
    return sample_error(option.format, rows, min(SAMPLE_COLUMNS, columns)) * max(1 - taken, 0.0)


INPUT_ERRORS = {"fp8": 6.8e-4, "int8": 5.0e-4, "nvfp4": 9.0e-3}
"""Relative energy of the error of rounded inputs. E4M3 rounds numbers in proportion to them: (2^-3)^2 / 12 of an
octave's lowest number, whose energy is about half of the octave's. The image's inputs in INT8, centred and scaled,
leave outputs with 33 dB on edits that calibration has not seen (`channel_scaling`). E2M1 in blocks of 16 under E4M3
scales: of normal numbers."""


def input_error(option: Option, network: str, weight: str) -> float:
    """The relative error that rounding a layer's inputs adds to its output; 0 where the option leaves them alone."""
    return INPUT_ERRORS[option.inputs] if option.rule(network, weight).activations else 0.0


@cache
def sample_error(name: str, rows: int, columns: int) -> float:
    """The relative error of rounding a normally distributed weight of this size."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return relative_error(weight, round_trip(weight, Layer(name), torch.float32, None), None)
