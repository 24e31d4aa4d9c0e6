"""What LoRAs a bundle takes when it runs: the manifest's `lora_slots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..safetensors_header import read_header
from .fields import Fields, whole_numbers

INPUTS = ("lora_down", "lora_up")
"""Of graphs with slots."""

FORMAT, VERSION = "kontext-lora", "1"
"""Of the metadata of a LoRA that was made ready."""

MOST_ROWS = 1 << 26
"""Of one graph's input. FLUX.1's transformer has 4.6 million rows for `lora_down`."""


def is_ready(path: Path) -> bool:
    """Whether a safetensors file is a LoRA that was made ready."""
    return path.suffix == ".safetensors" and read_header(path).metadata.get("format") == FORMAT


@dataclass(frozen=True)
class LoraSlots:
    """What LoRAs a bundle takes."""

    max_rank: int
    """Of all LoRAs of an edit together."""
    rows: Mapping[str, tuple[int, int]]
    """Graph → rows of its two inputs."""
    layout: str
    """What a file must have been made for."""


def read_slots(root: Fields, graphs: Sequence[str]) -> LoraSlots | None:
    """The manifest's `lora_slots`; None if it has none."""
    if "lora_slots" not in root.data:
        return None
    entry = root.group("lora_slots")
    rows = entry.group("rows")
    counts: dict[str, tuple[int, int]] = {}
    for graph in rows.data:
        if graph not in graphs:
            raise rows.error(graph, "is not one of the bundle's graphs")
        pair = whole_numbers(rows.get(graph), 2, partial(rows.error, graph), most=MOST_ROWS)
        counts[graph] = pair[0], pair[1]
    return LoraSlots(entry.whole("max_rank"), counts, entry.text("layout"))
