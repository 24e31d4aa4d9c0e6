"""Time to change LoRAs: of `Pipeline.load_loras` and of the step that follows, and of reading a large file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime import Pipeline
from ...runtime.bundle import Bundle
from ...runtime.lora import open_loras
from ..fullsize.benchmark import drop_page_cache
from ..quantspeed.step import transformer_inputs
from ..timing import Percentiles, interleave
from .files import rank_of_size, write_loras

BLOCK = 1 << 20
"""Bytes that the plain read asks for at a time."""


def swap_times(backend: str, bundle: Path, *, rank: int, repeat: int) -> dict[str, Any]:
    """Seconds of changing between two LoRAs, of the first step with the new one, and of a later step.

    Args:
        backend: a name of a backend of the runtime.
        bundle: with slots, on a CPU. The LoRAs are written beside it.
        rank: of both.
    """
    pipe = Pipeline.load(bundle, device="cpu", backend=backend, low_memory=False)
    assert pipe.bundle.lora_slots is not None
    files = [bundle.parent / f"swap-{number}.safetensors" for number in range(2)]
    for seed, path in enumerate(files):
        write_loras([path], pipe.bundle.lora_slots, rank, seed)
    tokens = 64  # of the embedded model's pictures
    pipe.load_loras(files[:1])
    given = transformer_inputs(pipe, tokens, pipe.loras)
    pipe.backend.run("transformer", given)

    def step() -> None:
        pipe.backend.run("transformer", {**given, **pipe.loras.inputs["transformer"]})

    found: dict[str, list[float]] = {"load": [], "first": [], "later": []}
    for turn in range(1, repeat + 1):
        found["load"].append(seconds(partial(pipe.load_loras, [files[turn % 2]])))
        found["first"].append(seconds(step))
        found["later"].append(seconds(step))
    return {name: Percentiles.of(each).to_json() for name, each in found.items()}


def read_times(bundle: Path, *, size: int, repeat: int) -> dict[str, Any]:
    """Seconds to load a LoRA of about `size` bytes and to read its file, from the disk and from the page cache."""
    whole = Bundle.open(bundle)
    assert whole.lora_slots is not None
    rank = rank_of_size(whole.lora_slots, size)
    # Slots differ in nothing but the highest rank that the manifest allows.
    roomy = dataclasses.replace(whole, lora_slots=dataclasses.replace(whole.lora_slots, max_rank=rank))
    path = bundle.parent / "large" / "lora.safetensors"
    path.parent.mkdir()
    write_loras([path], whole.lora_slots, rank)

    def cold(work: Callable[[], object]) -> float:
        drop_page_cache(path.parent)
        return seconds(work)

    def load() -> object:
        return open_loras(roomy, [(path, 1.0)])

    def read() -> None:
        read_plainly(path)

    times = interleave(
        {
            "read from the disk": lambda: cold(read),
            "load from the disk": lambda: cold(load),
            "read": lambda: seconds(read),  # the file is in the page cache by then
            "load": lambda: seconds(load),
        },
        repeat,
    )
    return {
        "bytes": path.stat().st_size,
        "rank": rank,
        "seconds": {name: Percentiles.of(each).to_json() for name, each in times.items()},
    }


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_plainly(path: Path) -> None:
    """Reads a file into one block of memory, and drops what it reads."""
    block = np.empty(BLOCK, np.uint8)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):  # type: ignore[arg-type]  # numpy arrays are buffers
            pass
