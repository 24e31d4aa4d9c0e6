"""Which rows of a graph's inputs `lora_down` [rows, rank] and `lora_up` [rows, rank] belong to which linear.

A linear's weight [out, in] has a slot for each part of its rows that diffusers has as a linear of its own: q, k and v,
each of which LoRAs give a rank of its own. A slot takes `in` rows of the first input, and as many as it has outputs of
the second.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from .config import KontextConfig
from .layouts import network_sources
from .networks import linear_weights, weight_shapes

NETWORKS = ("text_encoder", "modulation", "transformer")
"""Those that LoRAs for FLUX.1 are trained for. T5's and the autoencoder's are rare: only an export fuses them."""

Slots = dict[str, list["Slot"]]
"""Native weight → its slots, which have all of its rows in order."""


@dataclass(frozen=True)
class Slot:
    """Rows of the weight, and of the two inputs."""

    weight: slice
    down: slice
    up: slice


def network_slots(network: str, config: KontextConfig) -> Slots:
    """The slots of every linear of a network."""
    linears, sources = linear_weights(network, config), network_sources(network, config)
    result: Slots = {}
    inputs = outputs = 0
    for name, (height, *width) in weight_shapes(network, config).items():
        if name not in linears:
            continue
        rows = 0
        for size in part_heights(len(sources[name].parts), height, config):
            slot = Slot(
                slice(rows, rows + size), slice(inputs, inputs + width[0]), slice(outputs, outputs + size)
            )
            result.setdefault(name, []).append(slot)
            rows, inputs, outputs = rows + size, inputs + width[0], outputs + size
    return result


def part_heights(parts: int, height: int, config: KontextConfig) -> list[int]:
    """Rows of each part of a fused weight: q, k and v, and the MLP where there is a fourth."""
    if parts == 1:
        return [height]
    sizes = [config.transformer.hidden_size] * 3
    return sizes if parts == 3 else [*sizes, height - sum(sizes)]


def row_counts(slots: Slots) -> tuple[int, int]:
    """Rows of `lora_down` and of `lora_up`."""
    last = next(reversed(slots.values()))[-1]
    return last.down.stop, last.up.stop


def manifest_entry(config: KontextConfig, max_rank: int) -> dict[str, object]:
    """The manifest's `lora_slots`: the highest rank, the rows of each graph's inputs, and what files made ready for
    them must agree in."""
    return {
        "max_rank": max_rank,
        "rows": {network: list(row_counts(network_slots(network, config))) for network in NETWORKS},
        "layout": layout_digest(config),
    }


def layout_digest(config: KontextConfig) -> str:
    """SHA-256 of all slots' names and sizes: bundles with the same take the same files."""
    layout = [
        [network, name, slot.down.stop - slot.down.start, slot.up.stop - slot.up.start]
        for network in NETWORKS
        for name, slots in network_slots(network, config).items()
        for slot in slots
    ]
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()
