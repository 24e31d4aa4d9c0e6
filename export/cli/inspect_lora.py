"""Describes a LoRA file or folder, and whether it fits FLUX.1 Kontext: `kontext-export inspect LORA`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import KontextError
from ...model.config import KontextConfig
from ...model.lora.deltas import IncompleteLora
from ...model.lora.names import split_name
from ...model.lora.read import FOLDER_FILES, read_loras
from ...model.lora.settings import CONFIG_NAME
from ...model.networks import NETWORKS, weight_shapes
from ...model.stored_weight import StoredWeight
from .summary import counted

KINDS = {
    "down": "LoRA",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "magnitude": "DoRA",
    "dora_scale": "DoRA",
    "diff": "difference in full",
    "diff_b": "difference in full",
    "set_weight": "replacement",
}
"""Role of a tensor that an update has once → the update's kind. A DoRA has its LoRA's factors, too."""

RANKS = ("down", "hada_w1_b", "lokr_w2_b")


def is_lora_folder(path: Path) -> bool:
    """Whether a folder holds an adapter of PEFT or diffusers, and no model."""
    held = [name for name in (CONFIG_NAME, *FOLDER_FILES) if (path / name).is_file()]
    return bool(held) and not (path / "model_index.json").exists()


def describe_kinds(tensors: Mapping[str, StoredWeight]) -> str:
    """As "304 LoRA of rank 16, 4 LoKr"."""
    kinds: Counter[str] = Counter()
    ranks = set()
    for name, tensor in tensors.items():
        split = split_name(name)
        if split and split[1] in KINDS:
            kinds[KINDS[split[1]]] += 1
        if split and split[1] in RANKS and tensor.shape:
            ranks.add(tensor.shape[0])
    listed = ", ".join(map(str, sorted(ranks)[:6])) + (", …" if len(ranks) > 6 else "")
    rank = f" of rank {listed}" if ranks else ""
    return (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no update") + rank


def describe_fit(path: Path) -> Iterator[str]:
    """Lines about what an export of FLUX.1 Kontext would take of it. Raises KontextError if it is incomplete."""
    config = KontextConfig()
    shapes = {name: weight_shapes(name, config) for name in NETWORKS}
    try:
        _, (lora,) = read_loras([(path, 1.0)], shapes, config, partial=True)
    except IncompleteLora:
        raise
    except KontextError as error:
        yield f"  not for FLUX.1 Kontext: {error}"
        return
    yield f"  fits FLUX.1 Kontext: {counted(lora.updates, 'update')}"
    if lora.unmatched:
        names = ", ".join(lora.unmatched[:3]) + (", …" if len(lora.unmatched) > 3 else "")
        verb = "matches" if len(lora.unmatched) == 1 else "match"
        yield f"  {counted(len(lora.unmatched), 'tensor')} {verb} no weight of it: {names}"
    yield from (f"  {note}" for note in lora.notes)
    yield "  add --lora FILE[:WEIGHT] to the export"
