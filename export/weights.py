"""Streams a network's weights from a checkpoint into one safetensors file of the bundle, one weight in memory
at a time.

`plan` fixes every tensor's place before a weight is read, so graphs can point into a file that is still being
written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import KontextError
from ..model.checkpoint import NetworkWeights
from ..model.safetensors_file import DTYPES as STORED_DTYPES
from ..quant import methods
from ..quant.formats import FORMATS, WIDE
from ..quant.recipe import Layer, Recipe
from ..quant.statistics import InputStatistics

STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Formats to compute in → safetensors' names; `quant.formats` has those of quantized weights."""

Entry = tuple[str, str, tuple[int, ...]]
"""A tensor before it has a place: name, format as safetensors names it, shape."""

SYNC_BYTES = 1 << 30
"""Bytes between two syncs to disk; what a killed export may have to make again."""

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file: its format as safetensors names it, and its bytes' place counted from the
    file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Item:
    """What one weight becomes: itself in another format, or quantized values, scales and what else `layer` asks for;
    None for a constant."""

    weight: str
    layer: Layer | None
    transpose: bool
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True)
class Plan:
    """The whole file before it is written: its header's bytes and its tensors in order. `constants` are not
    weights; `statistics` are of the weights' inputs, by weight."""

    network: str
    compute: str
    header: bytes
    items: tuple[Item, ...]
    constants: dict[str, Tensor]
    statistics: Mapping[str, InputStatistics]

    @property
    def size(self) -> int:
        return self.items[-1].tensors[-1].stop if self.items else len(self.header)

    def tensors(self) -> dict[str, StoredTensor]:
        return {tensor.name: tensor for item in self.items for tensor in item.tensors}


def plan(
    network: NetworkWeights,
    recipe: Recipe,
    linears: set[str],
    constants: dict[str, Tensor],
    linked: Collection[str] = (),
    statistics: Mapping[str, InputStatistics] | None = None,
) -> Plan:
    """Lays out a network's file: constants first, then the weights in the network's own order.

    Args:
        network: names and shapes.
        recipe: decides every weight's format.
        linears: weights to be stored as [in, out].
        constants: tables that the graph needs and the checkpoint does not have.
        linked: weights that stay where they are.
        statistics: weight → what calibration knows of its inputs.
    """
    compute = recipe.compute[network.name]
    listed: list[tuple[str, Layer | None, bool, list[Entry]]] = []
    names = {dtype: name for name, dtype in STORED_DTYPES.items()}
    for name, tensor in constants.items():
        listed.append((name, None, False, [(name, names[tensor.dtype], tuple(tensor.shape))]))
    for name, shape in network.shapes.items():
        if name in linked:
            continue
        transpose = name in linears
        stored = shape[::-1] if transpose else shape
        layer = recipe.layer_of(network.name, name, stored, transpose)
        listed.append((name, layer, transpose, stored_as(name, stored, layer, compute)))
    position, relative = 0, {}
    for *_, entries in listed:
        for name, dtype, shape in entries:
            size = torch.Size(shape).numel() * STORED_DTYPES[dtype].itemsize
            relative[name] = (position, position + size)
            position += size
    fields = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(relative[name])}
        for *_, entries in listed
        for name, dtype, shape in entries
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    items = tuple(
        Item(
            weight,
            layer,
            transpose,
            tuple(
                StoredTensor(
                    name, dtype, shape, len(header) + relative[name][0], len(header) + relative[name][1]
                )
                for name, dtype, shape in entries
            ),
        )
        for weight, layer, transpose, entries in listed
    )
    return Plan(network.name, compute, header, items, constants, statistics or {})


def stored_as(name: str, shape: tuple[int, ...], layer: Layer, compute: str) -> list[Entry]:
    """Name, safetensors format and shape of each tensor that a weight of `shape` is stored as."""
    if layer.format not in FORMATS:
        return [(name, STORED[layer.format], shape)]
    rows, columns = shape
    return [
        (name + ending, STORED[compute] if dtype == WIDE else dtype, part)
        for ending, dtype, part in methods.layout(layer, (rows, columns))
    ]


def convert(plan: Plan, item: Item, network: NetworkWeights) -> list[Tensor]:
    """Reads one weight and makes its stored tensors, in the order of `item.tensors`.

    Raises:
        KontextError: the weight is damaged, or too large for the format asked for.
    """
    if item.layer is None:
        return [plan.constants[item.weight]]
    weight = network.read(item.weight)
    if item.transpose:
        weight = weight.t()
    if item.layer.format in FORMATS:
        wide = STORED_DTYPES[STORED[plan.compute]]
        return methods.quantize(weight, item.layer, wide, plan.statistics.get(item.weight))
    stored = weight.to(STORED_DTYPES[STORED[item.layer.format]]).contiguous()
    if item.layer.format == "fp16" and not torch.isfinite(stored.abs().max()):
        raise KontextError(
            f"{plan.network}: weight {item.weight} is too large for fp16: export with --bf16 or --fp32"
        )
    return [stored]


def converted(
    plan: Plan, items: Sequence[Item], network: NetworkWeights
) -> Iterator[tuple[Item, list[Tensor]]]:
    """Every item and its stored tensors; the next one is read and converted while the caller writes this one."""
    with ThreadPoolExecutor(1) as worker:
        ahead: Future[list[Tensor]] | None = None
        for position, item in enumerate(items):
            now = ahead or worker.submit(convert, plan, item, network)
            following = items[position + 1 : position + 2]
            ahead = worker.submit(convert, plan, following[0], network) if following else None
            yield item, now.result()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a contiguous tensor, not copied."""
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def write(
    plan: Plan,
    network: NetworkWeights,
    path: Path,
    start: int,
    synced: Callable[[int], None],
    advance: Callable[[int], object],
) -> str:
    """Writes the file of `plan` and returns its SHA-256.

    Args:
        plan, network: what to write and where to read it.
        path: the file; it is continued, not truncated, where `start` says so.
        start: bytes of it that an earlier run is known to have brought to disk; 0 for a new file.
        synced: told how many bytes are safely on disk, every `SYNC_BYTES` and when interrupted.
        advance: told of progress, in bytes.

    Raises:
        KontextError: a weight is damaged.
        OSError: the disk is full or fails.
    """
    digest = hashlib.sha256()
    # Only whole weights count: the first one that is not all there is made again.
    done = [item for item in plan.items if item.tensors[-1].stop <= start]
    position = done[-1].tensors[-1].stop if done else 0
    with path.open("r+b" if position else "wb") as file:
        try:
            if position:
                digest_prefix(file.read, position, digest, advance)
                file.truncate(position)
                file.seek(position)
            else:
                file.write(plan.header)
                digest.update(plan.header)
                advance(len(plan.header))
                position = len(plan.header)
            marked = position
            for item, tensors in converted(plan, plan.items[len(done) :], network):
                for stored, tensor in zip(item.tensors, tensors, strict=True):
                    data = raw_bytes(tensor)
                    if len(data) != stored.stop - stored.start:
                        raise RuntimeError(f"{stored.name} came out with {len(data)} bytes")
                    file.write(data)
                    digest.update(data)
                    advance(len(data))
                position = item.tensors[-1].stop
                if position - marked >= SYNC_BYTES:
                    synced(sync(file.fileno(), file.flush, position))
                    marked = position
            sync(file.fileno(), file.flush, position)
        except BaseException:  # Ctrl-C, a full disk, a damaged weight: what is whole stays
            synced(sync(file.fileno(), file.flush, position))
            raise
    return digest.hexdigest()


def digest_prefix(
    read: Callable[[int], bytes], length: int, digest: hashlib._Hash, advance: Callable[[int], object]
) -> None:
    """Takes the first `length` bytes of a file that is being continued into its digest."""
    while length:
        data = read(min(COPY_BYTES, length))
        if not data:
            raise KontextError("an unfinished file of an earlier export is shorter than it was: export again")
        digest.update(data)
        advance(len(data))
        length -= len(data)


def sync(descriptor: int, flush: Callable[[], None], position: int) -> int:
    flush()
    os.fsync(descriptor)
    return position
