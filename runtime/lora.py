"""LoRAs that an edit brings: files that `kontext-export lora` has made ready, for bundles exported with --lora-slots.

Such a file has the rows of the graphs' inputs `lora_down` and `lora_up`, which stand side by side for several LoRAs; a
LoRA's weight multiplies its `lora_up`. Without LoRAs the inputs have no columns, and the graphs compute as without
slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import KontextError
from ..regular_files import open_regular
from ..safetensors_header import TensorEntry, read_header
from .lora_slots import FORMAT, INPUTS, VERSION, LoraSlots
from .metadata import LoadedLora
from .number_checks import checked_scale

if TYPE_CHECKING:
    from .bundle import Bundle

Array = NDArray[np.float32]

BLOCK = 1 << 20
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class Lora:
    """A file that was made ready: its tensors are read when they are needed."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    rank: int
    source: str

    @classmethod
    def open(cls, path: Path, slots: LoraSlots) -> Lora:
        """Raises KontextError if it is no such file, or not for the bundle with these slots."""
        header = read_header(path)
        if header.metadata.get("format") != FORMAT:
            raise KontextError(
                f"{path} is not ready for bundles: `kontext-export lora {path} -o FILE` makes it so"
            )
        version = header.metadata.get("version")
        if version != VERSION:
            raise KontextError(
                f"{path} has the version {version!r}, this reads {VERSION}: make it ready again"
            )
        if header.metadata.get("layout") != slots.layout:
            raise KontextError(f"{path} was made for a model of other sizes than this bundle's")
        expected = {
            f"{graph}.{name}": count
            for graph, rows in slots.rows.items()
            for name, count in zip(INPUTS, rows, strict=True)
        }
        ranks: dict[str, set[int]] = {}
        for name, tensor in header.tensors.items():
            count = expected.get(name)
            if tensor.dtype != "F32" or len(tensor.shape) != 2 or tensor.shape[0] != count:
                raise KontextError(f"{path}: the tensor {name!r:.80} is not one of a LoRA for this bundle")
            ranks.setdefault(name.partition(".")[0], set()).add(tensor.shape[1])
        if (
            not ranks
            or any(len(each) != 1 for each in ranks.values())
            or len(header.tensors) != 2 * len(ranks)
        ):
            raise KontextError(f"{path}: a graph needs lora_down and lora_up of one rank")
        rank = max(each for found in ranks.values() for each in found)
        return cls(path, header.tensors, rank, str(header.metadata.get("source", "?")))

    def columns(self, graph: str) -> int:
        """Its share of the rank of a graph's inputs; 0 if it does not change the graph."""
        tensor = self.tensors.get(f"{graph}.{INPUTS[0]}")
        return 0 if tensor is None else tensor.shape[1]

    def read(self, places: Mapping[str, Array], weight: float) -> str:
        """Reads the file once, block by block, and returns its SHA-256 in hexadecimal.

        Args:
            places: name of each tensor → where it goes [rows, rank].
            weight: multiplies `lora_up`.

        Raises:
            KontextError: it cannot be read, or holds NaN or infinity.
        """
        digest = hashlib.sha256()
        try:
            with open_regular(self.path) as file:

                def read(size: int) -> bytes:
                    block = file.read(size)
                    if len(block) != size:
                        raise KontextError(f"{self.path} is truncated")
                    digest.update(block)
                    return block

                tensors = sorted(self.tensors.values(), key=lambda tensor: tensor.start)  # without gaps
                read(tensors[0].start)
                for tensor in tensors:
                    factor = np.float32(weight if tensor.name.endswith(INPUTS[1]) else 1)
                    rows, rank = tensor.shape
                    count = max(1, BLOCK // max(1, 4 * rank))
                    for row in range(0, rows, count):
                        part = places[tensor.name][row : row + count]
                        values = np.frombuffer(read(4 * part.size), "<f4").reshape(part.shape)
                        if not np.isfinite(values).all():
                            raise KontextError(
                                f"{self.path}: {tensor.name} holds NaN or infinity: the file is damaged"
                            )
                        np.multiply(values, factor, out=part)
        except OSError as error:
            raise KontextError(f"cannot read {self.path}: {error.strerror}") from None
        return digest.hexdigest()


@dataclass(frozen=True)
class Loras:
    """The LoRAs of an edit: equal where the files and weights are."""

    loaded: tuple[LoadedLora, ...] = ()
    inputs: Mapping[str, Mapping[str, Array]] = field(default_factory=dict, compare=False, repr=False)
    """Graph → its inputs `lora_down` and `lora_up`; empty for a bundle without slots."""

    def salt(self, graph: str) -> bytes:
        """What tells a graph's outputs from those with other LoRAs; empty if none changes it."""
        inputs = self.inputs.get(graph)
        return repr(self.loaded).encode() if inputs and inputs["lora_up"].shape[1] else b""


NO_LORAS = Loras()


def file_version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def open_loras(bundle: Bundle, loras: Sequence[tuple[Path, float]]) -> Loras:
    """Files, with their weights, for a bundle.

    Raises:
        KontextError: the bundle has no slots or too few, or a file is not ready for it.
    """
    if bundle.lora_slots is None:
        if loras:
            raise KontextError(
                f"{bundle.folder} takes no LoRAs: export it with --lora-slots RANK, or with the LoRA (--lora)"
            )
        return NO_LORAS
    opened = [
        (Lora.open(path, bundle.lora_slots), checked_scale(weight, f"the weight of {path}"))
        for path, weight in loras
    ]
    inputs, digests = read_loras(bundle.lora_slots, opened)
    loaded = [
        LoadedLora(lora.path.name, digest, weight)
        for (lora, weight), digest in zip(opened, digests, strict=True)
    ]
    return Loras(tuple(loaded), inputs)


def read_loras(
    slots: LoraSlots, loras: Sequence[tuple[Lora, float]]
) -> tuple[dict[str, dict[str, Array]], list[str]]:
    """Graph → its inputs for LoRAs and their weights, side by side; and each file's SHA-256 in hexadecimal.

    Raises:
        KontextError: their ranks add up to more than the slots', or one cannot be read.
    """
    total = sum(lora.rank for lora, _ in loras)
    if total > slots.max_rank:
        listed = " and ".join(f"{lora.path.name} ({lora.rank})" for lora, _ in loras)
        raise KontextError(
            f"the bundle has slots of rank {slots.max_rank} for all LoRAs together, and {listed} need {total}: "
            "`kontext-export lora --rank` makes smaller ones, or export with more --lora-slots"
        )
    inputs: dict[str, dict[str, Array]] = {}
    for graph, rows in slots.rows.items():
        rank = sum(lora.columns(graph) for lora, _ in loras)
        inputs[graph] = {
            name: np.empty((count, rank), np.float32) for name, count in zip(INPUTS, rows, strict=True)
        }
    digests = []
    filled = dict.fromkeys(inputs, 0)
    for lora, weight in loras:
        places: dict[str, Array] = {}
        for graph, start in filled.items():
            filled[graph] = stop = start + lora.columns(graph)
            places |= {f"{graph}.{name}": each[:, start:stop] for name, each in inputs[graph].items()}
        digests.append(lora.read(places, weight))
    return inputs, digests
