"""Calibration's statistics in a seventh of their bytes, to be shipped: moments as codes of 8 bits of a Cholesky factor.

The moments about the mean are M = L L^T; those about 0 follow from the sums. Each row of L below the diagonal is stored
as int8 codes of the square roots of its entries' sizes, over the row's largest; M's diagonal is kept, and gives L's.
Rounding L instead of M adds its error to M's small eigenvalues as a small positive term, as damping does, and M stays
positive: the moments' inverse, which GPTQ needs, is hardly changed. Weights that are rounded with the unpacked moments
leave errors in a layer's outputs within 0.11 dB of those with the moments themselves (FP8 and INT4, eight layers of the
embedded model). Everything else is stored as it is, and layers with the same inputs, such as q, k and v, once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .statistics import InputStatistics, Statistics

CODES = 127
"""Code of a row's largest entry."""

LEAST = 1e-6
"""Of the diagonal's mean: smaller eigenvalues are raised to it, since moments of few inputs are singular."""

FACTOR = ("diagonal", "largest", "codes")
"""What the moments are stored as."""


def pack_moments(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `moments` fp32 [blocks, size, size]: their diagonals fp32 [blocks, size], each row's largest entry of the
    factor fp32 [blocks, size], and codes int8 [blocks, size * (size - 1) / 2], row by row."""
    size = moments.shape[1]
    below = torch.tril_indices(size, size, -1)
    wide = moments.double()
    diagonal = wide.diagonal(dim1=1, dim2=2)
    means = diagonal.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(wide)
    values = values.maximum(torch.where(means > 0, LEAST * means, 1.0))
    factor = torch.linalg.cholesky(vectors @ (values[:, :, None] * vectors.mT)).tril(-1)
    largest = factor.abs().amax(2).clamp(min=torch.finfo(torch.float32).tiny)
    roots = factor.sign() * (factor.abs() / largest[:, :, None]).sqrt()
    codes = (roots * CODES).round().to(torch.int8)[:, below[0], below[1]]
    return diagonal.float(), largest.float(), codes.contiguous()


def unpack_moments(diagonal: Tensor, largest: Tensor, codes: Tensor) -> Tensor:
    """The moments that `pack_moments` packed, fp32 [blocks, size, size]; positive, as a product L L^T."""
    blocks, size = diagonal.shape
    below = torch.tril_indices(size, size, -1)
    factor = torch.zeros(blocks, size, size, dtype=torch.float64)
    roots = codes.double() / CODES
    factor[:, below[0], below[1]] = roots * roots.abs()
    factor *= largest.double()[:, :, None]
    rest = diagonal.double() - factor.square().sum(2)
    factor += torch.diag_embed(rest.clamp(min=0).sqrt())
    return (factor @ factor.mT).float()


def about_zero(moments: Tensor, of: InputStatistics) -> Tensor:
    """The inverse of `of.moments_about(of.mean())`."""
    sums, mean = (each.double().view(*moments.shape[:2], 1) for each in (of.sums, of.mean()))
    cross = sums @ mean.mT
    return (moments.double() + cross + cross.mT - of.rows * mean @ mean.mT).float()


def save_packed(statistics: Statistics, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes statistics as one safetensors file, with `metadata` in its header."""
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    for network, layers in statistics.inputs.items():
        for name, each in layers.items():
            key, parts = f"{network}/{name}", each.tensors()
            if parts.pop("moments", None) is not None:
                packed = pack_moments(each.moments_about(each.mean()))
                parts |= dict(zip(FACTOR, packed, strict=True))
            twin = next((first for first in twins(tensors) if equal(tensors, first, parts)), None)
            if twin is not None:
                same[key] = twin
            else:
                tensors |= {f"{key}/{kind}": tensor for kind, tensor in parts.items()}
    about = {"about": json.dumps(statistics.about, sort_keys=True), "same": json.dumps(same, sort_keys=True)}
    save_file(tensors, path, {**metadata, **about})


def twins(tensors: Mapping[str, Tensor]) -> list[str]:
    """The inputs in a file so far."""
    return list(dict.fromkeys(key.rpartition("/")[0] for key in tensors))


def equal(tensors: Mapping[str, Tensor], first: str, parts: Mapping[str, Tensor]) -> bool:
    return all(
        f"{first}/{kind}" in tensors and torch.equal(tensors[f"{first}/{kind}"], part)
        for kind, part in parts.items()
    )


def load_packed(path: Path) -> Statistics:
    """Reads what `save_packed` wrote; layers with the same inputs share them."""
    result = Statistics(file=path)
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118  (no dict: it cannot be iterated)
            inputs, _, kind = key.rpartition("/")
            found.setdefault(inputs, {})[kind] = file.get_tensor(key)
    result.about = json.loads(metadata["about"])
    unpacked: dict[str, InputStatistics] = {}
    for inputs, parts in found.items():
        each = InputStatistics.of_tensors(parts)
        if "codes" in parts:
            each.moments = about_zero(unpack_moments(*(parts[kind] for kind in FACTOR)), each)
        unpacked[inputs] = each
    unpacked |= {inputs: unpacked[twin] for inputs, twin in json.loads(metadata["same"]).items()}
    for inputs, each in unpacked.items():
        network, _, name = inputs.partition("/")
        result.inputs.setdefault(network, {})[name] = each
    return result
