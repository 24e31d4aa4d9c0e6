"""Where weights are while they are not in use, and a step as a CUDA graph.

`resident` blocks stay on the device; `swapped` ones stay in pinned host memory, and while one computes, the next is
copied on a stream of its own, so that of all blocks two are on the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .transformer import Block
from .weights import Part, each_tensor

WARMUPS = 2
"""Runs of a step before it is captured: kernels are compiled, libraries set up, and ways of computing chosen."""


PAGE = 4096
"""Bytes that are registered as a whole: no two tensors may share them."""

Blocks = Callable[[int, int], Iterator[AbstractContextManager[Block]]]
"""Hands out the blocks from one number to before another."""


def resident(blocks: Sequence[Block]) -> Blocks:
    return lambda start, stop: (nullcontext(block) for block in blocks[start:stop])


def pinned(part: Part, device: torch.device) -> Part:
    """A copy in host memory, which a GPU of this process can read by itself."""
    return each_tensor(part, pinned_tensor if device.type == "cuda" else Tensor.cpu)


def pinned_tensor(tensor: Tensor) -> Tensor:
    """A copy in pages of its own that CUDA is told of; as good but slower to read where it has no room for more.

    PyTorch's own allocator makes every tensor's memory a power of two, two fifths more for FLUX's weights, and keeps
    what was freed.
    """
    size = -(-tensor.nbytes // PAGE) * PAGE
    memory = np.empty(size + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    pages = memory[start : start + size]
    driver = torch.cuda.cudart()
    if size and int(driver.cudaHostRegister(pages.ctypes.data, size, 0)) == 0:
        done = weakref.finalize(memory, driver.cudaHostUnregister, pages.ctypes.data)
        done.atexit = False  # the process's end gives all back, and the driver may be gone by then
    elif size:
        with suppress(RuntimeError):  # the next launch of any kernel would raise what this call left behind
            torch.ones(1, device=tensor.device if tensor.is_cuda else "cuda")
    host = torch.from_numpy(pages[: tensor.nbytes]).view(tensor.dtype).view(tensor.shape)
    return host.copy_(tensor)


def recorded(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def swapped(blocks: Sequence[Block], device: torch.device) -> Blocks:
    """Hands out blocks from host memory, each copied while the one before it computes."""
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(block: Block) -> tuple[Block, torch.cuda.Event | None]:
        if copies is None:
            return each_tensor(block, lambda tensor: tensor.to(device, copy=True)), None
        with torch.cuda.stream(copies):
            there = each_tensor(block, lambda tensor: tensor.to(device, non_blocking=True))
            return there, copies.record_event()

    @contextmanager
    def use(there: Block, arrived: torch.cuda.Event | None) -> Iterator[Block]:
        if arrived is not None:
            compute = torch.cuda.current_stream(device)
            compute.wait_event(arrived)
            # The memory was taken on the other stream: it must not be given away before this one is done with it.
            each_tensor(there, partial(recorded, compute))
        yield there

    def hand_out(start: int, stop: int) -> Iterator[AbstractContextManager[Block]]:
        done: torch.cuda.Event | None = None
        ahead = fetch(blocks[start]) if start < stop else None
        for number in range(start, stop):
            assert ahead is not None
            now = ahead
            if number + 1 < stop:
                if copies is not None and done is not None:
                    copies.wait_event(done)  # not more than two blocks at once: the one before last is done
                ahead = fetch(blocks[number + 1])
            yield use(*now)
            if copies is not None:
                done = torch.cuda.current_stream(device).record_event()

    return hand_out


class GraphedStep:
    """A step captured once for each shape of its inputs, and replayed: no launch waits for Python.

    On a CPU, and where a graph does not fit, it calls the step. `pool` is the memory that graphs take, where several
    share one.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        device: torch.device,
        enabled: bool = True,
        pool: Any = None,
    ) -> None:
        self.step, self.pool = step, pool
        self.enabled = enabled and device.type == "cuda"
        self.graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        if not self.enabled:
            return self.step(**inputs)
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(inputs.items()))
        if shapes not in self.graphs:
            # Another shape's graph holds memory for all its activations: one at a time.
            self.graphs.clear()
            with suppress(torch.cuda.OutOfMemoryError):
                self.graphs[shapes] = self.capture(inputs)
            if shapes not in self.graphs:  # a graph's memory is its own, beside what the warm-up took
                self.enabled = False
                torch.cuda.empty_cache()
                return self.step(**inputs)
        graph, static, output = self.graphs[shapes]
        for name, tensor in inputs.items():
            static[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return output.clone()

    def drop_graphs(self) -> None:
        """Gives back what captured steps hold; the next call captures again."""
        self.graphs.clear()

    def capture(self, inputs: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]:
        static = {name: tensor.clone() for name, tensor in inputs.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self.step(**static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            output = self.step(**static)
        return graph, static, output
