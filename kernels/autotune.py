"""Picks the fastest of several candidates, which compute the same thing, or of a kernel's tiles, by measuring them.

Each is measured once per shape, and the times are kept in `MEASURED`. On a CPU, while a CUDA graph is captured, and
under torch.compile nothing is measured: the fastest so far is taken, or the first where none was measured, and compiled
code keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from .launch import FAILURES, Launch, triton

Tile = tuple[int, ...]
"""Rows, columns (and depth) of a program, warps and stages."""

Candidate = Callable[[], None]
"""Computes the thing and writes its result."""

LARGE = (90, 100, 103)
"""Hopper and datacenter Blackwell: 227 KB of shared memory, and tensor cores that read it."""


def generation(arch: int) -> int:
    """The oldest architecture with the same tiles as `arch`."""
    return 90 if arch in LARGE else 80


MEASURED: dict[str, dict[str, float]] = {}
"""Computation and sizes → candidate → milliseconds."""

REPEATS = 5


def fastest(key: str, candidates: Mapping[str, Candidate], changes: Tensor | None = None) -> Candidate:
    """The fastest of `candidates`, measured at the first call with `key`.

    Args:
        key: the computation and its sizes.
        candidates: by name, the preferred one first.
        changes: a tensor that every run adds to; restored after measuring.
    """
    if torch.compiler.is_compiling():
        return candidates[chosen(key, tuple(candidates))]
    if key not in MEASURED:
        if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return next(iter(candidates.values()))
        kept = None if changes is None else changes.clone()
        MEASURED[key] = {name: measure_milliseconds(candidate) for name, candidate in candidates.items()}
        if changes is not None and kept is not None:
            changes.copy_(kept)
    return candidates[chosen(key, tuple(candidates))]


def fastest_tile(
    key: str, tiles: Sequence[Tile], plan: Callable[[int], Launch], changes: Tensor | None = None
) -> None:
    """Runs a kernel with the fastest of its tiles.

    Without Triton it is the first tile, the only one that bundles contain compiled.

    Args:
        key: the kernel and its sizes.
        tiles: those that the kernel can be compiled for.
        plan: makes the launch with the tile of this index.
        changes: as in `fastest`.
    """

    def run(tile: int) -> None:
        plan(tile).run()

    if len(tiles) == 1 or triton is None:
        run(0)
        return
    names = ["x".join(map(str, tile)) for tile in tiles]
    key = key.replace("torch.", "")  # dtypes are printed with it
    fastest(f"tile of {key}", {name: partial(run, i) for i, name in enumerate(names)}, changes)()


@torch.compiler.assume_constant_result
def chosen(key: str, names: tuple[str, ...]) -> str:
    """The one of `names` that was measured fastest; the first if none was measured."""
    times = MEASURED.get(key)
    return names[0] if times is None else min(times, key=lambda name: times[name])


def measure_milliseconds(candidate: Candidate) -> float:
    """The median of a few runs, by CUDA events, after one that compiles; infinite if it cannot run here."""
    try:
        candidate()
    except (
        FAILURES
    ):  # a library may lack this format on this GPU, a kernel need more shared memory than it has
        return float("inf")
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        candidate()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[REPEATS // 2]
