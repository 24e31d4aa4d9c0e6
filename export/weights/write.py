"""Streams weights from a checkpoint into a file, with few of them in memory at a time.

Reading and converting, hashing, and syncing to disk run in separate threads, so that an export without quantization
runs at the speed of the disk.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...errors import KontextError
from ...model.checkpoint import NetworkWeights
from ...quant.formats import FORMATS
from ...safetensors_header import TensorEntry
from .convert import convert
from .plan import WeightPlan

SYNC_BYTES = 256 << 20
"""Bytes between two syncs to disk: what a killed export loses at most."""

AHEAD_BYTES = 256 << 20
"""Bytes of converted weights that may wait to be written; a single weight may be larger."""

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Tensors that follow each other in a file and are made together: `make` returns them in the order of
    `tensors`."""

    tensors: tuple[TensorEntry, ...]
    make: Callable[[], Sequence[Tensor]]

    @property
    def start(self) -> int:
        return self.tensors[0].start

    @property
    def stop(self) -> int:
        return self.tensors[-1].stop

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Stream:
    """A file before it is written: its first bytes, then its pieces, each of which begins where the one before
    ends."""

    header: bytes
    pieces: tuple[Piece, ...]
    computes: bool = False
    """Whether making pieces keeps all cores busy and takes much memory, as quantizing does: one is then made at a
    time."""

    @property
    def size(self) -> int:
        return self.pieces[-1].stop if self.pieces else len(self.header)


def weight_stream(plan: WeightPlan, network: NetworkWeights) -> Stream:
    """A bundle's file of a network's weights."""
    pieces = tuple(
        Piece(item.tensors, functools.partial(convert, plan, item, network)) for item in plan.items
    )
    quantized = any(item.layer is not None and item.layer.format in FORMATS for item in plan.items)
    return Stream(plan.header, pieces, quantized)


def write_stream(
    stream: Stream,
    path: Path,
    start: int,
    on_sync: Callable[[int], None],
    advance: Callable[[int], object],
) -> str:
    """Writes the file of `stream` and returns its SHA-256.

    Args:
        stream: what to write.
        path: the file; continued if `start` is not 0.
        start: bytes that an earlier run is known to have synced to disk; 0 for a new file.
        on_sync: called with the number of bytes that are safely on disk, every `SYNC_BYTES` and when interrupted; in
            any
            thread, but never in two at once.
        advance: called with the number of bytes just written.

    Raises:
        KontextError: a weight is damaged.
        OSError: the disk is full or fails.
    """
    digest = hashlib.sha256()
    # Only whole pieces count: the first incomplete one is written again.
    done = [piece for piece in stream.pieces if piece.stop <= start]
    position = done[-1].stop if done else 0
    with (
        path.open("r+b" if position else "wb", buffering=0) as file,
        SyncedFile(file, digest, on_sync) as output,
    ):
        if position:
            hash_prefix(file.read, position, digest, advance)
            file.truncate(position)
            file.seek(position)
        else:
            output.write(memoryview(stream.header))
            advance(len(stream.header))
            position = len(stream.header)
        output.position = position
        for piece, tensors in made(stream.pieces[len(done) :], stream.computes):
            for stored, tensor in zip(piece.tensors, tensors, strict=True):
                data = raw_bytes(tensor)
                if len(data) != stored.size:
                    raise RuntimeError(f"{stored.name} has {len(data)} bytes instead of {stored.size}")
                output.write(data)
                advance(len(data))
            output.mark_complete(piece.stop)
    return digest.hexdigest()


class SyncedFile:
    """A file that is hashed and synced to disk while it is written; at the end of the context all of it is on disk."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash, on_sync: Callable[[int], None]) -> None:
        self.file = file
        self.digest = digest
        self.on_sync = on_sync
        self.position = self.marked = 0
        self.threads = ThreadPoolExecutor(2)
        self.hashing: Future[None] | None = None
        self.syncing: Future[None] | None = None

    def __enter__(self) -> SyncedFile:
        return self

    def write(self, data: memoryview) -> None:
        """Writes `data`, which must not change until the next call."""
        if self.hashing is not None:
            self.hashing.result()
        self.hashing = self.threads.submit(self.digest.update, data)
        while data:  # a write may be partial
            data = data[self.file.write(data) :]

    def mark_complete(self, position: int) -> None:
        """Notes that an interrupted export can continue from `position`; syncs if `SYNC_BYTES` have been written."""
        self.position = position
        if position - self.marked >= SYNC_BYTES:
            if self.syncing is not None:
                self.syncing.result()
            self.syncing = self.threads.submit(self.sync, position)
            self.marked = position

    def sync(self, position: int) -> None:
        os.fsync(self.file.fileno())
        self.on_sync(position)
        # As for tensors that are read (`safetensors_file.UNCACHED_BYTES`): 1200 MB/s instead of 400.
        if position >= SYNC_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.file.fileno(), 0, position, os.POSIX_FADV_DONTNEED)

    def __exit__(self, *fault: object) -> None:
        """Syncs whatever is complete, also after Ctrl-C, a full disk or a damaged weight."""
        self.threads.shutdown()
        self.sync(self.position)
        for future in (self.hashing, self.syncing):
            if future is not None and fault[0] is None:
                future.result()


def made(pieces: Sequence[Piece], one_at_a_time: bool) -> Iterator[tuple[Piece, Sequence[Tensor]]]:
    """Every piece with its tensors, in order; the next ones are made while the caller writes."""
    # Two threads: one waits for the disk while the other computes.
    waiting: deque[tuple[Piece, Future[Sequence[Tensor]]]] = deque()
    ahead, following = 0, iter(pieces)
    upcoming = next(following, None)
    with ThreadPoolExecutor(1 if one_at_a_time else 2) as workers:
        try:
            while upcoming is not None or waiting:
                while upcoming is not None and (not waiting or ahead + upcoming.size <= AHEAD_BYTES):
                    waiting.append((upcoming, workers.submit(upcoming.make)))
                    ahead += upcoming.size
                    upcoming = next(following, None)
                piece, future = waiting.popleft()
                yield piece, future.result()
                ahead -= piece.size
        finally:
            workers.shutdown(cancel_futures=True)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a contiguous tensor, without a copy."""
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def hash_prefix(
    read: Callable[[int], bytes], length: int, digest: hashlib._Hash, advance: Callable[[int], object]
) -> None:
    """Adds the first `length` bytes of a file that is being continued to its digest."""
    while length:
        data = read(min(COPY_BYTES, length))
        if not data:
            raise KontextError("an unfinished file of an earlier export has become shorter: export again")
        digest.update(data)
        advance(len(data))
        length -= len(data)
