"""Other names for the same weights: ComfyUI's and InvokeAI's norms, and OpenAI's CLIP."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KontextError
from .safetensors_file import TensorInfo
from .stored_weight import StoredWeight

if TYPE_CHECKING:
    from torch import Tensor

NORM = re.compile(r"((?:double|single)_blocks\.\d+\..*norm\.(?:query|key)_norm)\.weight")
"""Black Forest Labs' name ends in `.scale`. ComfyUI's ModelSave since February 2026, InvokeAI and forge write
`.weight`."""

CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d{1,4})\.(.+)")

CLIP_PARTS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
CLIP_LAYER_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""OpenAI's name → transformers'."""

LONG_POSITIONS = "positional_embedding_res"
KEPT_POSITIONS = 20
"""LongCLIP takes its first 20 positions from `positional_embedding`, and only the others from this tensor (Zhang et al.
2024, arXiv:2403.15378)."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a weight that can only be read as a whole."""

    whole: StoredWeight
    start: int
    stop: int

    @property
    def path(self) -> Path:
        return self.whole.path

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stop - self.start, *self.whole.shape[1:]

    def read(self) -> Tensor:
        return self.whole.read()[self.start : self.stop].clone()


@dataclass(frozen=True)
class Stacked:
    """The rows of one weight, then those of another of the same format."""

    first: StoredWeight
    second: StoredWeight

    @property
    def path(self) -> Path:
        return self.first.path

    @property
    def name(self) -> str:
        return self.first.name

    @property
    def dtype(self) -> str:
        return self.first.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape[0] + self.second.shape[0], *self.first.shape[1:]

    def read(self) -> Tensor:
        import torch

        return torch.cat((self.first.read(), self.second.read()))


def rows_of(weight: StoredWeight, start: int, stop: int) -> StoredWeight:
    """Rows of a weight [rows, …]; where it lies plainly in a file, they are a tensor in the same place."""
    if not isinstance(weight, TensorInfo):
        return Rows(weight, start, stop)
    row = weight.size // weight.shape[0]
    return dataclasses.replace(
        weight,
        name=f"{weight.name}[{start}:{stop}]",
        shape=(stop - start, *weight.shape[1:]),
        start=weight.start + start * row,
        stop=weight.start + stop * row,
    )


def native_norms(tensors: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """A transformer in native names, with its norms' as Black Forest Labs' are.

    Raises:
        KontextError: a norm is there under both names.
    """
    result: dict[str, StoredWeight] = {}
    for name, weight in tensors.items():
        own = f"{match[1]}.scale" if (match := NORM.fullmatch(name)) else name
        if own in result or (own != name and own in tensors):
            raise KontextError(f"{weight.path} holds {own} twice, the second time as {weight.name}")
        result[own] = weight
    return result


def transformers_clip(tensors: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """OpenAI's CLIP with transformers' names: q, k and v are thirds of `attn.in_proj_weight`'s rows. Tensors with other
    names keep them."""
    result: dict[str, StoredWeight] = {}
    for name, weight in long_positions(tensors).items():
        match = CLIP_LAYER.fullmatch(name)
        if match is None:
            result[f"text_model.{CLIP_PARTS[name]}" if name in CLIP_PARTS else name] = weight
            continue
        layer, part = f"text_model.encoder.layers.{match[1]}", match[2]
        module, _, kind = part.rpartition(".")
        if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
            rows = weight.shape[0] // 3 if weight.shape else 0
            if not rows or weight.shape[0] % 3:
                raise KontextError(
                    f"{weight.path}: tensor {weight.name} is {list(weight.shape)}, expected three times as many rows "
                    "as columns"
                )
            for index, third in enumerate("qkv"):
                own = f"{layer}.self_attn.{third}_proj.{part.rpartition('_')[2]}"
                result[own] = rows_of(weight, index * rows, (index + 1) * rows)
        else:
            result[f"{layer}.{CLIP_LAYER_PARTS[module]}.{kind}" if module in CLIP_LAYER_PARTS else name] = (
                weight
            )
    return result


def long_positions(tensors: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """LongCLIP's two tables of positions as one, under CLIP's name.

    Raises:
        KontextError: they do not fit together.
    """
    result = dict(tensors)
    short, long = result.get("positional_embedding"), result.pop(LONG_POSITIONS, None)
    if long is None:
        return result
    given = [f"{table.dtype} {list(table.shape)}" for table in (short, long) if table is not None]
    fits = (
        short is not None and (short.dtype, short.shape) == (long.dtype, long.shape) and len(long.shape) == 2
    )
    if short is None or not fits or long.shape[0] <= KEPT_POSITIONS:
        raise KontextError(
            f"{long.path}: positional_embedding and {long.name} are {' and '.join(given)}, expected two tables alike"
        )
    kept = rows_of(short, 0, KEPT_POSITIONS)
    result["positional_embedding"] = Stacked(kept, rows_of(long, KEPT_POSITIONS, long.shape[0]))
    return result
