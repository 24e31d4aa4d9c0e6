"""How much each layer's quantization moves the denoiser's output: a report as data, measured or estimated.

Measured: the energy of the velocity's error over the velocity's, with one layer quantized. Estimated: the relative
error of the layer's own output, times a gain for its kind that was measured on the embedded model.
"""

from __future__ import annotations

import json
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
from .methods import dequantize, quantize
from .options import Option
from .recipe import Layer
from .sensitivity_prior import GAINS
from .statistics import InputStatistics

FORMAT, VERSION = "kontext-sensitivity", 1

METHODS = {
    "velocity": "measured on the velocity",
    "moments": "estimated from the error of each layer's output over the calibration's inputs",
    "weights": "estimated from the error of each layer's weights",
    "shapes": "estimated from the layers' shapes alone, for normal weights",
}

SAMPLE_COLUMNS = 64
"""Output channels of the normal weight that stands for one that is not read."""


@dataclass
class LayerSensitivity:
    """Of one layer of `shape` [in, out], by option: `errors` are relative energies of the velocity's error, `relative`
    those of the layer's own output, `ranges` the velocity's in the early, middle and late steps (empty: not measured).
    """

    shape: tuple[int, int]
    errors: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    ranges: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Sensitivity:
    """Of a model: network → weight → layer. `sums` has, by option, the sum of all layers' errors and the error of the
    model with all of them quantized; `pictures` the final picture's PSNR in dB with one layer quantized."""

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
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["format_version"] != VERSION:
                raise ValueError(f"it does not say {FORMAT!r}, version {VERSION}")
            layers = {
                network: {weight: read_layer(layer) for weight, layer in each.items()}
                for network, each in data["layers"].items()
            }
            if data["method"] not in METHODS:
                raise ValueError(f"method {data['method']!r} is not known")
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
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, KontextError) as fault:
            raise KontextError(f"{path} is no report of kontext-export sensitivity: {fault}") from None

    def error(self, network: str, weight: str, shape: tuple[int, int], option: Option) -> float:
        """The energy that quantizing a layer adds.

        Raises:
            KontextError: the report has no such layer, so it is of another model.
        """
        layer = self.layers.get(network, {}).get(weight)
        if layer is None or layer.shape != shape or str(option) not in layer.errors:
            raise KontextError(
                f"the sensitivity report is of {self.model} in {', '.join(self.options)}, and says nothing of "
                f"{network}: {weight} {list(shape)} in {option}: measure this model"
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
    """`weight` [in, out] quantized and back, fp32."""
    return dequantize(quantize(weight, layer, dtype, statistics), layer)


def relative_error(weight: Tensor, quantized: Tensor, moments: Tensor | None) -> float:
    """Energy of the error of a layer's output, x @ (quantized - weight), over that of its output.

    `moments` are the inputs' second moments in diagonal blocks; without, inputs count as white noise, and what remains
    is the weights' own error.
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


def gain(network: str, weight: str, count: int) -> float:
    """Energy of the velocity's error per relative energy of the layer's own, where the network has `count` layers of
    its kind: in a residual network each of them adds one part of `count`."""
    known = GAINS.get(kind_of(network, weight))
    if known is None:
        same = [value for kind, value in GAINS.items() if kind.startswith(f"{network}/")]
        known = sum(same) / len(same) if same else 1.0
    return known / count


def gains_of(report: Sensitivity, option: str) -> dict[str, float]:
    """The table `GAINS`, of a report that was measured: kind → sum over its layers of the velocity's error per relative
    error of the layer's own."""
    gains: dict[str, float] = {}
    for network, layers in report.layers.items():
        for weight, layer in layers.items():
            if layer.relative.get(option, 0.0) > 0:
                kind = kind_of(network, weight)
                gains[kind] = gains.get(kind, 0.0) + layer.errors[option] / layer.relative[option]
    return gains


def normal_error(option: Option, shape: tuple[int, int], wide: int) -> float:
    """The relative error that an option leaves in a normal weight of `shape` [in, out].

    A branch takes its share of such a weight's energy before: the largest singular values of a random matrix are about
    √in + √out, and the squares of all add up to in · out.
    """
    rows, columns = shape
    rank = option.rank_of(shape, wide)
    taken = rank * (math.sqrt(rows) + math.sqrt(columns)) ** 2 / (rows * columns)
    return sample_error(option.format, rows, min(SAMPLE_COLUMNS, columns)) * max(1 - taken, 0.0)


@cache
def sample_error(name: str, rows: int, columns: int) -> float:
    """The relative error of rounding a normal weight of this size."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return relative_error(weight, round_trip(weight, Layer(name), torch.float32, None), None)
