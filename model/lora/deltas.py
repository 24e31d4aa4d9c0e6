"""Differences that adapters add to a weight, in the forms that files hold them: low-rank, LoHa, LoKr, or in full.

Shapes are checked against the weight from the header alone. A difference is added a few rows at a time, so that none
of the weight's size is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ...errors import KontextError
from ..finite import is_finite
from ..safetensors_file import TensorInfo
from .names import Role

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Tensors: TypeAlias = Mapping[Role, TensorInfo]
Add: TypeAlias = "Callable[[Tensor, slice, float], object]"
"""(rows of a weight in fp32, which of the difference's rows they are, scale): adds scale times the difference."""

HADAMARD: tuple[Role, ...] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
KRONECKER: dict[Role, tuple[Role, Role]] = {
    "lokr_w1": ("lokr_w1_a", "lokr_w1_b"),
    "lokr_w2": ("lokr_w2_a", "lokr_w2_b"),
}
"""A Kronecker factor → the two factors that it may be stored as."""


class Delta(Protocol):
    """A difference of a weight's shape [height, ...]."""

    @property
    def tensor(self) -> TensorInfo:
        """The tensor that names it in messages."""

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None if alpha does not apply."""

    def load(self, device: torch.device) -> Add:
        """Reads the factors.

        Raises:
            KontextError: one cannot be read, or holds NaN or infinity.
        """


@dataclass(frozen=True)
class Fit:
    """What an adapter's tensors have to fit: the rows of `weight` that its module has, of `shape` [height, ...]."""

    path: Path
    weight: str
    shape: tuple[int, ...]

    def check(self, info: TensorInfo, wanted: tuple[int, ...]) -> None:
        if info.shape != wanted:
            raise self.error(info, f"needs {list(wanted)}")

    def error(self, info: TensorInfo, need: str) -> KontextError:
        return KontextError(
            f"{self.path} was made for another model: tensor {info.name} is {list(info.shape)}, but "
            f"{self.weight} {list(self.shape)} {need}"
        )

    def check_rank(self, info: TensorInfo, rank: int) -> None:
        if rank == 0:
            raise KontextError(f"{self.path}: tensor {info.name} has rank 0: the LoRA is empty or damaged")


@dataclass(frozen=True)
class Whole:
    """The difference itself."""

    tensor: TensorInfo
    rank: None = None

    def load(self, device: torch.device) -> Add:
        whole = read_finite(self.tensor, device)
        return lambda weight, rows, scale: weight.add_(whole[rows], alpha=scale)


@dataclass(frozen=True)
class LowRank:
    """up @ down (Hu 2021, https://arxiv.org/abs/2106.09685)."""

    down: TensorInfo
    up: TensorInfo

    @property
    def tensor(self) -> TensorInfo:
        return self.up

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def load(self, device: torch.device) -> Add:
        up, down = read_finite(self.up, device), read_finite(self.down, device)
        return lambda weight, rows, scale: weight.addmm_(up[rows], down, alpha=scale)


@dataclass(frozen=True)
class Hadamard:
    """LoHa: (w1_a @ w1_b) ∘ (w2_a @ w2_b) (Hyeon-Woo 2021, https://arxiv.org/abs/2108.06098)."""

    factors: tuple[TensorInfo, ...]

    @property
    def tensor(self) -> TensorInfo:
        return self.factors[0]

    @property
    def rank(self) -> int:
        return self.factors[1].shape[0]

    def load(self, device: torch.device) -> Add:
        w1_a, w1_b, w2_a, w2_b = (read_finite(info, device) for info in self.factors)

        def add(weight: Tensor, rows: slice, scale: float) -> None:
            weight.addcmul_(w1_a[rows] @ w1_b, w2_a[rows] @ w2_b, value=scale)

        return add


@dataclass(frozen=True)
class Kronecker:
    """LoKr: w1 ⊗ w2, each in full or as two factors (LyCORIS, https://arxiv.org/abs/2309.14859)."""

    w1: tuple[TensorInfo, ...]
    w2: tuple[TensorInfo, ...]

    @property
    def tensor(self) -> TensorInfo:
        return self.w1[0]

    @property
    def rank(self) -> int | None:
        return next((w[1].shape[0] for w in (self.w2, self.w1) if len(w) == 2), None)

    def load(self, device: torch.device) -> Add:
        w1, w2 = (self.product([read_finite(info, device) for info in w]) for w in (self.w1, self.w2))
        height = len(w1) * len(w2)

        def add(weight: Tensor, rows: slice, scale: float) -> None:
            import torch

            index = torch.arange(*rows.indices(height), device=device)
            left, right = w1[index // len(w2)], w2[index % len(w2)]
            blocks = weight.unflatten(1, (w1.shape[1], w2.shape[1]))
            blocks.addcmul_(left.unsqueeze(2), right.unsqueeze(1), value=scale)

        return add

    @staticmethod
    def product(factors: list[Tensor]) -> Tensor:
        return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


def find_delta(tensors: Tensors, fit: Fit) -> Delta | None:
    """The low-rank, LoHa or LoKr difference in a module's tensors; None if it has no factor of any.

    Raises:
        KontextError: a factor is missing, does not fit, or there are factors of several kinds.
    """
    kinds: dict[str, Callable[[Tensors, Fit], Delta]] = {
        "lora": low_rank,
        "hada": hadamard,
        "lokr": kronecker,
    }
    marks = {"down": "lora", "up": "lora"}
    held = dict.fromkeys(mark for role in tensors if (mark := marks.get(role, role[:4])) in kinds)
    if len(held) > 1:
        infos = [
            next(info for role, info in tensors.items() if marks.get(role, role[:4]) == kind) for kind in held
        ]
        raise KontextError(f"{fit.path} holds two updates of one weight: {infos[0].name} and {infos[1].name}")
    return kinds[next(iter(held))](tensors, fit) if held else None


def low_rank(tensors: Tensors, fit: Fit) -> LowRank:
    down, up = tensors.get("down"), tensors.get("up")
    if down is None or up is None:
        first = next(info for info in (up, down) if info is not None)
        raise incomplete(fit, first, "lora_A (lora_down)" if up else "lora_B (lora_up)")
    height, *width = fit.shape
    rank = down.shape[0] if down.shape else 0
    fit.check(down, (rank, *width))
    fit.check(up, (height, rank))
    fit.check_rank(down, rank)
    return LowRank(down, up)


def hadamard(tensors: Tensors, fit: Fit) -> Hadamard:
    factors = tuple(tensors[role] for role in HADAMARD if role in tensors)
    if missing := [role for role in HADAMARD if role not in tensors]:
        raise incomplete(fit, factors[0], missing[0])
    height, *width = fit.shape
    for outer, inner in (factors[:2], factors[2:]):
        rank = inner.shape[0] if inner.shape else 0
        fit.check(inner, (rank, *width))
        fit.check(outer, (height, rank))
        fit.check_rank(inner, rank)
    return Hadamard(factors)


def kronecker(tensors: Tensors, fit: Fit) -> Kronecker:
    first = next(info for role, info in tensors.items() if role.startswith("lokr_"))
    sides = []
    for whole, parts in KRONECKER.items():
        found = tuple(tensors[role] for role in parts if role in tensors)
        if whole in tensors and found:
            raise KontextError(f"{fit.path} holds {whole} twice: {tensors[whole].name} and {found[0].name}")
        if whole in tensors:
            found = (tensors[whole],)
        elif len(found) < 2:
            lacking = next(role for role in parts if role not in tensors)
            raise incomplete(fit, found[0] if found else first, lacking if found else whole)
        sides.append(found)
    for side in sides:
        for info in side:
            if len(info.shape) != 2:
                raise fit.error(info, "needs a matrix: convolutions (LoCon) are not supported")
        if len(side) == 2:
            rank = side[1].shape[0]
            fit.check(side[0], (side[0].shape[0], rank))
            fit.check_rank(side[1], rank)
    w1, w2 = sides
    shape = tuple(math.prod(lengths) for lengths in zip(*(outer_shape(side) for side in sides), strict=True))
    if shape != fit.shape:
        raise fit.error(w2[0], f"differs from the product with {w1[0].name}, {list(shape)}")
    return Kronecker(w1, w2)


def outer_shape(side: tuple[TensorInfo, ...]) -> tuple[int, int]:
    return side[0].shape[0], side[-1].shape[1]


class IncompleteLora(KontextError):
    """A file lacks a part of an update: whatever the model, it is bad."""


def incomplete(fit: Fit, info: TensorInfo, lacking: str) -> IncompleteLora:
    return IncompleteLora(f"{fit.path}: tensor {info.name} has no {lacking}: the file is incomplete")


def read_finite(info: TensorInfo, device: torch.device) -> Tensor:
    """A tensor in fp32.

    Raises:
        KontextError: it cannot be read, or holds NaN or infinity.
    """
    tensor = info.read().float()
    if not is_finite(tensor):
        raise KontextError(f"{info.path}: tensor {info.name} holds NaN or infinity: the LoRA is damaged")
    return tensor.to(device)
