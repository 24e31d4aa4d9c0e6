"""Chooses between ways to compute one thing, and between tiles of one kernel, by measuring them, once for each shape,
and keeps the measurements.

Nothing is measured on a CPU, while a CUDA graph is captured, or under torch.compile: there the first way that was not
measured slower is taken, and compiled code keeps to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from .launch import FAILURES, triton

Tile = tuple[int, ...]
"""A kernel's rows, columns (and depth) a program, warps and stages."""

LARGE = (90, 100, 103)
"""Hopper and datacenter Blackwell: 227 KB of shared memory, and tensor cores that read it."""


def generation(arch: int) -> int:
    """The oldest architecture that has the tiles of `arch`."""
    return 90 if arch in LARGE else 80


MEASURED: dict[str, dict[str, float]] = {}
"""What was measured: key → way → milliseconds."""

REPEATS = 5


def fastest(
    key: str, ways: Mapping[str, Callable[[], None]], changes: Tensor | None = None
) -> Callable[[], None]:
    """The fastest of `ways`; measured at the first call with `key`.

    Args:
        key: the computation and its sizes.
        ways: name → what computes it, the preferred one first.
        changes: a tensor that every run adds to: it is put back after measuring.
    """
    if torch.compiler.is_compiling():
        return ways[chosen(key, tuple(ways))]
    if key not in MEASURED:
        if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return next(iter(ways.values()))
        kept = None if changes is None else changes.clone()
        MEASURED[key] = {name: milliseconds(way) for name, way in ways.items()}
        if changes is not None and kept is not None:
            changes.copy_(kept)
    return ways[chosen(key, tuple(ways))]


def fastest_tile(
    key: str, tiles: Sequence[Tile], start: Callable[[int], None], changes: Tensor | None = None
) -> None:
    """Runs a kernel with the fastest of its tiles, the first of which is the one that bundles have compiled.

    Args:
        key: the kernel and its sizes.
        tiles: what the kernel can be compiled for.
        start: runs it with the tile of this number.
        changes: as in `fastest`.
    """
    if len(tiles) == 1 or triton is None:
        start(0)
        return
    names = ["x".join(map(str, tile)) for tile in tiles]
    key = key.replace("torch.", "")  # as dtypes are written
    fastest(f"tile of {key}", {name: partial(start, i) for i, name in enumerate(names)}, changes)()


@torch.compiler.assume_constant_result
def chosen(key: str, names: tuple[str, ...]) -> str:
    """The one of `names` that was measured fastest; the first where nothing was."""
    times = MEASURED.get(key)
    return names[0] if times is None else min(times, key=lambda name: times[name])


def milliseconds(way: Callable[[], None]) -> float:
    """The median of a few runs, by device events, after one that compiles; infinite if it cannot run here."""
    try:
        way()
    except FAILURES:  # a library may lack this format on this GPU, a kernel find too little shared memory
        return float("inf")
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[REPEATS // 2]
