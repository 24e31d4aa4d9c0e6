"""Synthetic LoRAs that are ready for a bundle, with factors for every linear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ...runtime.lora_slots import FORMAT, INPUTS, VERSION, LoraSlots

SIZE = 0.01
"""Of the factors' values: with it the branches change the outputs of linears as little as trained LoRAs do."""


def write_loras(paths: Sequence[Path], slots: LoraSlots, rank: int, seed: int = 0) -> None:
    """Writes a LoRA of this rank, its columns dealt out evenly to files that together do what it does."""
    rng = np.random.default_rng(seed)
    whole = {
        f"{graph}.{name}": rng.standard_normal((count, rank), dtype=np.float32) * np.float32(SIZE)
        for graph, rows in slots.rows.items()
        for name, count in zip(INPUTS, rows, strict=True)
    }
    metadata = {"format": FORMAT, "version": VERSION, "layout": slots.layout, "source": "synthetic"}
    for number, path in enumerate(paths):
        own = {name: np.ascontiguousarray(each[:, number :: len(paths)]) for name, each in whole.items()}
        save_file(own, path, metadata)


def rank_of_size(slots: LoraSlots, size: int) -> int:
    """The rank of a LoRA that takes about `size` bytes."""
    return max(1, round(size / (4 * sum(sum(rows) for rows in slots.rows.values()))))
