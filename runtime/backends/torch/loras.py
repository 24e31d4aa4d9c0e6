"""LoRAs in the torch backend: the rows of a graph's inputs `lora_down` and `lora_up` become low-rank branches of the
network's linears, beside those of their number formats."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....model.config import KontextConfig
from ....model.lora_slots import network_slots

RANK_MULTIPLE = 16
"""Of a branch, as kernels tile it; zeros fill it up."""


def linear_branches(
    network: str, config: KontextConfig, down: NDArray[np.float32], up: NDArray[np.float32]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight → down [in, rank] and up [rank, out] of every linear that LoRAs change, in fp32.

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
