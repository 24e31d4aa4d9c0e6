"""Runs a function of parts of a weight on all cores, each part on one.

PyTorch splits every single operation over its threads, which then wait for each other: for the many short passes of a
search of scales that costs more than it gains, above all beside other programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def on_all_cores(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`function` of each part, in order; in as many threads as PyTorch has for one operation."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or len(parts) < 2:
        return [function(part) for part in parts]
    try:
        # The number is that of the thread that sets it, and of threads that are started later.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            return list(workers.map(function, parts))
    finally:
        torch.set_num_threads(threads)
