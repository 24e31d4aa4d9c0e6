"""LoRAs in the torch backend: the rows of a graph's inputs `lora_down` and `lora_up` become low-rank branches of the
network's linears, beside those of their number formats. Other LoRAs change these alone: all other tensors stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....model.config import KontextConfig
from ....model.lora_slots import network_slots
from .linear import KernelLinear
from .transformer import STREAM_LINEARS, STREAMS, DoubleBlock, SingleBlock, Stream, Weights
from .weights import StoredLinear

Branches = Mapping[str, tuple[Tensor, Tensor]]
"""Weight → down [in, rank] and up [rank, out], in fp32."""

RANK_MULTIPLE = 16
"""Of a branch, as kernels tile it; zeros fill it up."""


def linear_branches(
    network: str, config: KontextConfig, down: NDArray[np.float32], up: NDArray[np.float32]
) -> Branches:
    """The branches of every linear that LoRAs change.

    The slots of a fused linear stand side by side: each has columns of `down`, and rows of `up` that reach its own
    outputs only.
    """
    branches = {}
    for weight, slots in network_slots(network, config).items():
        parts = [
            (slot, torch.from_numpy(down[slot.down]), torch.from_numpy(up[slot.up]))
            for slot in slots
            if down[slot.down].any() and up[slot.up].any()
        ]
        if not parts:
            continue
        rank = sum(part.shape[1] for _, part, _ in parts)
        rank += -rank % RANK_MULTIPLE
        width, height = parts[0][1].shape[0], slots[-1].weight.stop
        wide, tall = torch.zeros(width, rank), torch.zeros(rank, height)
        start = 0
        for slot, own_down, own_up in parts:
            stop = start + own_down.shape[1]
            wide[:, start:stop] = own_down
            tall[start:stop, slot.weight] = own_up.t()
            start = stop
        branches[weight] = wide, tall
    return branches


def with_branch(
    name: str,
    stored: StoredLinear,
    branches: Branches,
    dtype: torch.dtype,
    keep: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> StoredLinear:
    """The linear `name` with its branch, if it has one, in `dtype`; what is new goes through `keep`."""
    branch = branches.get(f"{name}.weight")
    if branch is None:
        return stored
    changed = stored.with_branch(*branch, dtype)
    down, up, bias = (
        None if tensor is None or tensor is before else keep(tensor)
        for tensor, before in ((changed.down, None), (changed.up, None), (changed.bias, stored.bias))
    )
    return replace(changed, down=down, up=up, bias=changed.bias if bias is None else bias)


def with_branches(
    weights: Weights,
    branches: Branches,
    dtype: torch.dtype,
    keep: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Weights:
    """The transformer's weights with branches; all tensors that no branch changes are those of `weights`.

    Args:
        weights: without LoRAs.
        branches: of `linear_branches`.
        dtype: of the branches' factors.
        keep: moves a new tensor to where the weights are kept.
    """

    def linear(name: str, given: KernelLinear) -> KernelLinear:
        stored = with_branch(name, given.stored, branches, dtype, keep)
        return given if stored is given.stored else replace(given, stored=stored)

    def stream(prefix: str, given: Stream) -> Stream:
        linears: dict[str, Any] = {
            field: linear(f"{prefix}_{own}", getattr(given, field)) for field, own in STREAM_LINEARS.items()
        }
        return replace(given, **linears)

    def double(index: int, block: DoubleBlock) -> DoubleBlock:
        given = zip(STREAMS, (block.image, block.text), strict=True)
        return DoubleBlock(*(stream(f"double_blocks.{index}.{name}", each) for name, each in given))

    def single(index: int, block: SingleBlock) -> SingleBlock:
        prefix = f"single_blocks.{index}"
        return replace(
            block,
            linear1=linear(f"{prefix}.linear1", block.linear1),
            linear2=linear(f"{prefix}.linear2", block.linear2),
        )

    return Weights(
        image_in=linear("img_in", weights.image_in),
        text_in=linear("txt_in", weights.text_in),
        double=tuple(double(index, block) for index, block in enumerate(weights.double)),
        single=tuple(single(index, block) for index, block in enumerate(weights.single)),
        final=linear("final_layer.linear", weights.final),
    )
