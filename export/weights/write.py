"""Streams a network's weights from a checkpoint into their file, a few of them in memory at a time.

Reading and converting, digesting and waiting for the disk each go on in a thread of their own, so that an export that
quantizes nothing runs at the speed of the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...errors import KontextError
from ...model.checkpoint import NetworkWeights
from ...quant.formats import FORMATS
from .plan import PlannedWeight, WeightPlan, convert

SYNC_BYTES = 256 << 20
"""Bytes between two syncs to disk; what a killed export may have to make again."""

AHEAD_BYTES = 256 << 20
"""Of converted weights that may wait to be written; one may be larger."""

COPY_BYTES = 1 << 20


def write_weights(
    plan: WeightPlan,
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
        synced: told how many bytes are safely on disk, every `SYNC_BYTES` and when interrupted; in any thread, but
            never in two at once.
        advance: told of progress, in bytes.

    Raises:
        KontextError: a weight is damaged.
        OSError: the disk is full or fails.
    """
    digest = hashlib.sha256()
    # Only whole weights count: the first one that is not all there is made again.
    done = [item for item in plan.items if item.tensors[-1].stop <= start]
    position = done[-1].tensors[-1].stop if done else 0
    with path.open("r+b" if position else "wb", buffering=0) as file, Output(file, digest, synced) as output:
        if position:
            digest_prefix(file.read, position, digest, advance)
            file.truncate(position)
            file.seek(position)
        else:
            output.write(memoryview(plan.header))
            advance(len(plan.header))
            position = len(plan.header)
        output.position = position
        for item, tensors in converted(plan, plan.items[len(done) :], network):
            for stored, tensor in zip(item.tensors, tensors, strict=True):
                data = raw_bytes(tensor)
                if len(data) != stored.stop - stored.start:
                    raise RuntimeError(f"{stored.name} came out with {len(data)} bytes")
                output.write(data)
                advance(len(data))
            output.whole(item.tensors[-1].stop)
    return digest.hexdigest()


class Output:
    """A file that is digested and brought to disk while it is written; a context that ends with all of it there."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash, synced: Callable[[int], None]) -> None:
        self.file = file
        self.digest = digest
        self.synced = synced
        self.position = self.marked = 0
        self.threads = ThreadPoolExecutor(2)
        self.digesting: Future[None] | None = None
        self.syncing: Future[None] | None = None

    def __enter__(self) -> Output:
        return self

    def write(self, data: memoryview) -> None:
        """Writes `data`, which must not change until the next call."""
        if self.digesting is not None:
            self.digesting.result()
        self.digesting = self.threads.submit(self.digest.update, data)
        while data:  # the system may take less than it is given
            data = data[self.file.write(data) :]

    def whole(self, position: int) -> None:
        """Notes that all up to here can be gone on from, and brings it to disk where that is due."""
        self.position = position
        if position - self.marked >= SYNC_BYTES:
            if self.syncing is not None:
                self.syncing.result()
            self.syncing = self.threads.submit(self.sync, position)
            self.marked = position

    def sync(self, position: int) -> None:
        os.fsync(self.file.fileno())
        self.synced(position)
        # As for tensors that are read (`safetensors_file.PASSING`): 1200 MB/s instead of 400.
        if position >= SYNC_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.file.fileno(), 0, position, os.POSIX_FADV_DONTNEED)

    def __exit__(self, *fault: object) -> None:
        """Ctrl-C, a full disk, a damaged weight: what is whole stays."""
        self.threads.shutdown()
        self.sync(self.position)
        for future in (self.digesting, self.syncing):
            if future is not None and fault[0] is None:
                future.result()


def converted(
    plan: WeightPlan, items: Sequence[PlannedWeight], network: NetworkWeights
) -> Iterator[tuple[PlannedWeight, list[Tensor]]]:
    """Every item and its stored tensors, in order; following ones are read and converted while the caller writes."""
    # One that waits for the disk and one that computes; quantization uses all cores and much memory by itself.
    quantized = any(item.layer is not None and item.layer.format in FORMATS for item in items)
    waiting: deque[tuple[PlannedWeight, Future[list[Tensor]]]] = deque()
    ahead, following = 0, iter(items)
    upcoming = next(following, None)
    with ThreadPoolExecutor(1 if quantized else 2) as workers:
        try:
            while upcoming is not None or waiting:
                while upcoming is not None and (not waiting or ahead + upcoming.size <= AHEAD_BYTES):
                    waiting.append((upcoming, workers.submit(convert, plan, upcoming, network)))
                    ahead += upcoming.size
                    upcoming = next(following, None)
                item, future = waiting.popleft()
                yield item, future.result()
                ahead -= item.size
        finally:
            workers.shutdown(cancel_futures=True)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a contiguous tensor, not copied."""
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


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
