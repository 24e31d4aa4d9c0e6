"""Makes a LoRA ready for bundles with slots: one file with the rows of `lora_down` and `lora_up` of every network that
it changes, so that a runtime reads it without PyTorch and without knowing any trainer's names.

The file is safetensors: `NETWORK.lora_down` and `NETWORK.lora_up` in fp32 [rows, rank], and metadata (`runtime.lora`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import KontextError
from ...files import replacing
from ...model.checkpoint import Checkpoint, NetworkWeights
from ...model.lora.read import read_loras
from ...model.lora.update import Update
from ...model.lora_slots import NETWORKS, Slots, layout_digest, network_slots, row_counts
from ...runtime.lora_slots import FORMAT, VERSION
from ..progress import Progress
from .factors import Factors, change_of, exact_factors, exact_rank, nearest_factors

DEFAULT_RANK = 32
"""Of factors that are not exact, if none is asked for."""


@dataclass(frozen=True)
class Prepared:
    """What became of a LoRA."""

    output: Path
    rank: int
    slots: int
    """Slots that it fills."""
    errors: Mapping[str, float]
    """Weight → the share of its change that is left out, for weights whose factors are not exact."""
    left_out: Sequence[str]
    """Weights that it changes and no slot is for."""
    notes: Sequence[str]


def prepare_lora(
    checkpoint: Checkpoint,
    lora: Path,
    output: Path,
    *,
    rank: int | None = None,
    partial: bool = False,
    show_progress: bool = False,
) -> Prepared:
    """Writes `output` from a LoRA of any style that an export fuses.

    Args:
        checkpoint: the model of the bundles that it is for. Only LoRAs that are no sums (DoRA) need its weights.
        lora: the file or folder.
        output: replaced if it exists.
        rank: the highest in the file; larger changes become the nearest ones. None: that of the LoRA if it is low-rank,
            else `DEFAULT_RANK`.
        partial: leave out what matches no weight of the model, and what changes no linear with a slot.
        show_progress: draw a bar on stderr.

    Raises:
        KontextError: the LoRA is damaged, of another model, or changes what no slot is for.
    """
    shapes = {name: network.shapes for name, network in checkpoint.networks.items()}
    updates, (file,) = read_loras([(lora, 1.0)], shapes, checkpoint.config, partial)
    slots = {name: network_slots(name, checkpoint.config) for name in NETWORKS}
    left_out = [
        f"{network}: {weight}"
        for network, changed in updates.items()
        for weight in changed
        if weight not in slots.get(network, {})
    ]
    if left_out and not partial:
        raise KontextError(
            f"{lora} changes {len(left_out)} weights that are no linears with a slot ({left_out[0]}): --lora-partial "
            "leaves them out, and --lora of an export fuses them"
        )
    wanted = {
        name: {weight: each for weight, each in updates.get(name, {}).items() if weight in slots[name]}
        for name in NETWORKS
    }
    most = rank or highest_rank(wanted, slots) or DEFAULT_RANK
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    filled = 0
    with Progress(show_progress).steps("LoRA", sum(map(len, wanted.values()))) as advance:
        for name, changed in wanted.items():
            found: list[tuple[str, int, Factors]] = []
            for weight, each in changed.items():
                found += weight_factors(checkpoint.networks[name], weight, each, slots[name], most)
                advance(1)
            for weight, _, factors in found:
                if factors.error:
                    errors[weight] = max(factors.error, errors.get(weight, 0.0))
            if found:
                down, up = joined(found, slots[name])
                tensors |= {f"{name}.lora_down": down, f"{name}.lora_up": up}
            filled += len(found)
    if not tensors:
        raise KontextError(f"{lora} changes nothing that a slot is for")
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "layout": layout_digest(checkpoint.config),
        "source": file.name,
        "source_sha256": file.digest,
    }
    with replacing(output) as temporary:
        save_file(tensors, temporary, metadata)
    highest = max(tensor.shape[1] for tensor in tensors.values())
    return Prepared(output, highest, filled, errors, left_out, file.notes)


def highest_rank(wanted: Mapping[str, Mapping[str, Sequence[Update]]], slots: Mapping[str, Slots]) -> int:
    """Of the slots with exact factors; 0 if there are none."""
    ranks = (
        exact_rank(updates, slot.weight)
        for name, changed in wanted.items()
        for weight, updates in changed.items()
        for slot in slots[name][weight]
    )
    return max((each for each in ranks if each is not None), default=0)


def weight_factors(
    network: NetworkWeights, weight: str, updates: Sequence[Update], slots: Slots, most: int
) -> list[tuple[str, int, Factors]]:
    """(weight, which of its slots, factors) of the slots that updates change."""
    result = []
    change: Tensor | None = None
    for index, slot in enumerate(slots[weight]):
        exact = exact_rank(updates, slot.weight)
        if exact is not None and exact <= most:
            factors = exact_factors(updates, slot.weight, network.shapes[weight][1])
        else:
            if change is None:
                change = change_of(updates, network.shapes[weight], lambda: network.read(weight))
            factors = nearest_factors(change[slot.weight], most)
        if factors.down.shape[1]:
            result.append((weight, index, factors))
    return result


def joined(found: Sequence[tuple[str, int, Factors]], slots: Slots) -> tuple[Tensor, Tensor]:
    """The rows of all slots; zeros where nothing is changed and beyond a slot's own rank."""
    rank = max(factors.down.shape[1] for _, _, factors in found)
    down, up = (torch.zeros(rows, rank) for rows in row_counts(slots))
    for weight, index, factors in found:
        slot, own = slots[weight][index], factors.down.shape[1]
        down[slot.down, :own] = factors.down
        up[slot.up, :own] = factors.up
    return down, up


def describe_errors(errors: Mapping[str, float]) -> str:
    """What is lost where factors are not exact."""
    worst = max(errors, key=lambda weight: errors[weight])
    return (
        f"{len(errors)} weights' changes are approximated; of the worst, {worst}, {errors[worst]:.2%} of the norm is "
        "left out"
    )
