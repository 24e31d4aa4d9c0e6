"""Statistics of a layer's inputs from calibration, in bounded memory: moments, largest values, a histogram.

Statistics of the sampler's steps are kept by range (early, …, late), since a denoiser's activations change with time.
They are sums, counts and maxima, so samples can be streamed in any order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import KontextError
from ..regular_files import open_regular

RANGES = 4
"""Ranges of the sampler's steps with separate statistics."""

MOMENTS = 1024
"""Inputs in a block of second moments: a layer of 12 288 inputs has 12 blocks of 4 MB instead of 604 MB."""

OCTAVES, FINENESS = 48, 8
"""The histogram: bins of 1/8 octave, for absolute values from 2^-24 up to 2^24."""

BIN_SHIFT = 20
"""Bits of an fp32 below its sign, its exponent and the 3 bits for eighths of an octave."""

FIRST_BIN = (127 - OCTAVES // 2) * FINENESS
"""The upper bits of 2^-24."""

VERSION = 2
"""Of the statistics. Increase it when other statistics are collected: cached and shipped ones are then ignored."""


def block_size(width: int) -> int:
    """The largest divisor of a layer's inputs that is at most `MOMENTS`."""
    return next(size for size in range(min(width, MOMENTS), 0, -1) if width % size == 0)


@dataclass
class InputStatistics:
    """Of one linear's inputs, or one operand of an attention.

    `lowest` and `highest` are fp32 [ranges, channels], from 0 on; `sums` are fp64 [channels]; `histogram` counts
    absolute values by octave, fp64 [bins]; `moments` are the sums of x^T x in diagonal blocks, fp32 [blocks, size,
    size], or None if not wanted.
    """

    width: int
    lowest: Tensor
    highest: Tensor
    sums: Tensor
    histogram: Tensor
    moments: Tensor | None
    rows: int = 0

    @classmethod
    def empty(cls, width: int, moments: bool = True) -> InputStatistics:
        size = block_size(width)
        return cls(
            width,
            torch.zeros(RANGES, width),
            torch.zeros(RANGES, width),
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(OCTAVES * FINENESS, dtype=torch.float64),
            torch.zeros(width // size, size, size) if moments else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What files hold of it."""
        kept = {
            "lowest": self.lowest,
            "highest": self.highest,
            "sums": self.sums,
            "histogram": self.histogram,
        }
        kept["rows"] = torch.tensor(self.rows)
        return kept if self.moments is None else {**kept, "moments": self.moments}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> InputStatistics:
        """The inverse of `tensors`."""
        return cls(
            tensors["lowest"].shape[1],
            tensors["lowest"],
            tensors["highest"],
            tensors["sums"],
            tensors["histogram"],
            tensors.get("moments"),
            int(tensors["rows"]),
        )

    def add(self, inputs: Tensor, part: int) -> None:
        """Adds `inputs` [..., width] of a step in range `part`.

        Raises:
            KontextError: they hold NaN or infinity.
        """
        rows = inputs.detach().reshape(-1, self.width).float()
        if not len(rows):
            return
        sizes = rows.abs()
        if not torch.isfinite(sizes.amax()):
            raise KontextError("NaN or infinity in its inputs")
        self.lowest[part] = torch.minimum(self.lowest[part], rows.amin(0))
        self.highest[part] = torch.maximum(self.highest[part], rows.amax(0))
        self.sums += rows.sum(0, dtype=torch.float64)
        # The upper bits of an fp32 are its octave and its eighth of it: frexp takes several times as long.
        bins = sizes.view(torch.int32) >> BIN_SHIFT
        bins = bins.sub_(FIRST_BIN).clamp_(0, len(self.histogram) - 1)
        self.histogram += torch.bincount(bins.flatten(), minlength=len(self.histogram))
        if self.moments is not None:
            parts = rows.view(len(rows), *self.moments.shape[:2]).transpose(0, 1)
            self.moments += parts.transpose(1, 2) @ parts
        self.rows += len(rows)

    @property
    def largest(self) -> Tensor:
        """fp32 [ranges, channels]: the largest absolute values."""
        return torch.maximum(-self.lowest, self.highest)

    def mean(self) -> Tensor:
        """fp32 [channels]; 0 without inputs."""
        return (self.sums / max(self.rows, 1)).float()

    def mean_square(self) -> Tensor:
        """fp32 [channels]: what llama.cpp calls an importance matrix; 0 without inputs.

        Raises:
            ValueError: no moments were kept.
        """
        if self.moments is None:
            raise ValueError("no moments were kept")
        return self.moments.diagonal(dim1=1, dim2=2).flatten() / max(self.rows, 1)

    def middle(self) -> Tensor:
        """fp32 [channels]: of the range of the inputs and 0."""
        return (self.highest.amax(0) + self.lowest.amin(0)) / 2

    def reach(self, centre: Tensor) -> Tensor:
        """fp32 [channels]: how far inputs, and 0, are at most from `centre` [channels]."""
        return torch.maximum(self.highest.amax(0) - centre, centre - self.lowest.amin(0))

    def moments_about(self, centre: Tensor) -> Tensor:
        """The moments of the inputs less `centre` [channels].

        Raises:
            ValueError: none were kept.
        """
        if self.moments is None:
            raise ValueError("no moments were kept")
        blocks = self.moments.double()
        sums, middle = (each.double().view(*blocks.shape[:2], 1) for each in (self.sums, centre))
        cross = sums @ middle.mT
        return (blocks - cross - cross.mT + self.rows * middle @ middle.mT).float()

    def amax(self) -> float:
        return float(self.largest.max())

    def percentile(self, share: float) -> float:
        """The size that a `share` of all values does not exceed, to an eighth of an octave."""
        counts = self.histogram.cumsum(0)
        index = int(torch.searchsorted(counts, share * counts[-1]))
        return min(bin_edge(index + 1), self.amax())

    def spread(self) -> float:
        """Ratio of the largest values of the ranges of steps: the largest over the smallest, at least 1."""
        each = self.largest.amax(1)
        seen = each[each > 0]
        return float(seen.max() / seen.min()) if len(seen) else 1.0


def bin_edge(index: int) -> float:
    """The lower edge of a bin of the histogram."""
    octave, part = divmod(index, FINENESS)
    return math.ldexp(1 + part / FINENESS, octave - OCTAVES // 2)


@dataclass
class Statistics:
    """Of every calibrated input: network → name → statistics; `about` says what they were collected on, `file` which
    file they were loaded from, if any."""

    inputs: dict[str, dict[str, InputStatistics]] = field(default_factory=dict)
    about: Mapping[str, object] = field(default_factory=dict)
    file: Path | None = field(default=None, compare=False)

    def get(self, network: str, name: str) -> InputStatistics | None:
        return self.inputs.get(network, {}).get(name)

    def save(self, path: Path) -> None:
        """Writes everything as one safetensors file."""
        tensors: dict[str, Tensor] = {}
        for network, layers in self.inputs.items():
            for name, each in layers.items():
                tensors |= {f"{network}/{name}/{kind}": tensor for kind, tensor in each.tensors().items()}
        save_file(tensors, path, {"about": json.dumps(self.about, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Reads what `save` wrote. Raises KontextError for anything else."""
        try:
            open_regular(path).close()
            with safe_open(path, "pt") as file:
                result = cls(about=json.loads((file.metadata() or {})["about"]), file=path)
                found: dict[tuple[str, str], dict[str, Tensor]] = {}
                for key in file.keys():  # noqa: SIM118  (no dict: it cannot be iterated)
                    network, name, kind = key.split("/")
                    found.setdefault((network, name), {})[kind] = file.get_tensor(key)
            for (network, name), tensors in found.items():
                result.inputs.setdefault(network, {})[name] = InputStatistics.of_tensors(tensors)
        except Exception as fault:  # safetensors raises its own, with no public base class
            raise KontextError(f"{path} is no calibration: {fault}") from None
        return result
