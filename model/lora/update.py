"""Changes to some output rows of one native weight: a sum, a DoRA, or a replacement.

An update reads its tensors when it is applied, and goes through the weight a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import KontextError
from ..finite import is_finite
from ..safetensors_file import TensorInfo
from .deltas import Delta, read_finite

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 23
"""Numbers of a weight that are changed at a time: 32 MB in fp32. Smaller ones are slow while other programs run: each
waits for all cores (2 cores, load 11: 1 MB takes 10 times as long as the whole weight at once)."""


@dataclass(frozen=True)
class Update:
    """A change to `rows` of a native weight, in the order of the adapter's own rows."""

    rows: tuple[slice, ...]

    @property
    def path(self) -> Path:
        """The adapter's file."""
        raise NotImplementedError

    def apply_to(self, weight: Tensor) -> None:
        """Changes `weight`, fp32 [out, ...], in place.

        Raises:
            KontextError: a tensor cannot be read or holds NaN or infinity, or the result overflows.
        """
        parts = [weight[rows] for rows in self.rows]
        self.change(parts)
        if not all(is_finite(part) for part in parts):
            raise KontextError(self.overflow())

    def change(self, parts: Sequence[Tensor]) -> None:
        """Changes the rows, which are views of the weight, in place."""
        raise NotImplementedError

    def overflow(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Addition(Update):
    """W + scale · Δ."""

    delta: Delta
    scale: float

    @property
    def path(self) -> Path:
        return self.delta.tensor.path

    def change(self, parts: Sequence[Tensor]) -> None:
        add = self.delta.load(parts[0].device)
        for rows, own in chunks(parts):
            add(rows, own, self.scale)

    def overflow(self) -> str:
        tensor = self.delta.tensor
        return (
            f"{tensor.path}: {tensor.name} at scale {self.scale:g} overflows the weight that it is added to: the LoRA "
            "is damaged, or its weight is too large"
        )


@dataclass(frozen=True)
class Decomposed(Addition):
    """DoRA (Liu 2024, https://arxiv.org/abs/2402.09353): W + strength · (m · V / ‖V‖ - W), where V = W + scale · Δ.

    The norm is that of V's rows (PEFT; LyCORIS with wd_on_out) or of its columns (older files of LyCORIS), over the
    module's own rows. In PEFT the adapter's weight multiplies Δ, and strength is 1; in ComfyUI it multiplies the whole
    change. (ComfyUI divides by ‖W‖ where the norm is by rows, unlike the trainers; LyCORIS's keeps Δ whole.)
    """

    magnitude: TensorInfo
    norm_of: Literal["rows", "columns"]
    strength: float = 1.0

    def change(self, parts: Sequence[Tensor]) -> None:
        device = parts[0].device
        add, magnitude = self.delta.load(device), read_finite(self.magnitude, device)
        import torch

        eps = torch.finfo(torch.float32).eps
        if self.norm_of == "columns":
            squares = torch.zeros(parts[0].shape[1], device=device)
            for rows, own in chunks(parts):
                total = rows.clone()
                add(total, own, self.scale)
                squares += total.square_().sum(0)
            factor = magnitude.reshape(1, -1) / (squares.sqrt() + eps)
        for rows, own in chunks(parts):
            total = rows.clone()
            add(total, own, self.scale)
            if self.norm_of == "rows":
                factor = magnitude.reshape(-1, 1)[own] / (total.norm(dim=1, keepdim=True) + eps)
            rows.lerp_(total.mul_(factor), self.strength)


@dataclass(frozen=True)
class Replacement(Update):
    """The tensor itself, whatever the adapter's weight."""

    tensor: TensorInfo

    @property
    def path(self) -> Path:
        return self.tensor.path

    def change(self, parts: Sequence[Tensor]) -> None:
        whole = read_finite(self.tensor, parts[0].device)
        for part, new in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.copy_(new)

    def overflow(self) -> str:
        return f"{self.tensor.path}: {self.tensor.name} overflows: the LoRA is damaged"


def chunks(parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice]]:
    """Some rows of the weight at a time, and which of the adapter's rows they are."""
    start = 0
    for part in parts:
        for rows in part.split(max(1, CHUNK // max(1, part[0].numel()))):
            yield rows, slice(start, start + len(rows))
            start += len(rows)
