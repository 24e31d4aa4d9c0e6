"""Where a transformer's blocks are kept, and a step as a CUDA graph.

`resident` blocks stay on the device. `swapped` blocks stay in page-locked host memory: while one computes, the next is
copied on another stream, so that two are on the device.
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
from .weights import Tree, each_tensor

WARMUPS = 2
"""Runs of a step before it is captured, in which kernels are compiled, libraries set up and candidates timed."""

PAGE = 4096
"""Bytes of a page of host memory; pages are locked as a whole, so no two tensors may share one."""

Blocks = Callable[[int, int], Iterator[AbstractContextManager[Block]]]
"""(start, stop) → the blocks in that range; each is on the device while its context is entered."""


def resident(blocks: Sequence[Block]) -> Blocks:
    return lambda start, stop: (nullcontext(block) for block in blocks[start:stop])


def page_locked(part: Tree, device: torch.device) -> Tree:
    """A copy in host memory, page-locked if `device` is a GPU."""
    return each_tensor(part, page_locked_tensor if device.type == "cuda" else Tensor.cpu)


def page_locked_tensor(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory; falls back to pageable memory if CUDA refuses (same data, slower transfer).

    PyTorch's allocator of page-locked memory rounds every size up to a power of two, which takes two fifths more for
    FLUX's weights, and does not return freed memory.
    """
    size = -(-tensor.nbytes // PAGE) * PAGE
    memory = np.empty(size + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    pages = memory[start : start + size]
    driver = torch.cuda.cudart()
    if size and int(driver.cudaHostRegister(pages.ctypes.data, size, 0)) == 0:
        done = weakref.finalize(memory, driver.cudaHostUnregister, pages.ctypes.data)
        done.atexit = False  # the end of the process frees it, and the driver may be unloaded by then
    elif size:
        with suppress(RuntimeError):  # clears the call's error, which the next kernel launch would raise
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
            # Allocated on the copies' stream: the memory must not be reused before this stream is done with it.
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
                    copies.wait_event(done)  # at most two blocks on the device
                ahead = fetch(blocks[number + 1])
            yield use(*now)
            if copies is not None:
                done = torch.cuda.current_stream(device).record_event()

    return hand_out


class GraphedStep:
    """A step captured as a CUDA graph once for each shape of its inputs and then replayed, without Python's overhead.

    On a CPU, and if a graph does not fit the GPU, the step is called directly.

    Args:
        step: takes tensors by name; returns one.
        device: where it runs.
        enabled: False: never capture.
        pool: memory that several graphs share; None: each has its own.
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
            # A graph holds memory for all its activations: keep one at a time.
            self.graphs.clear()
            with suppress(torch.cuda.OutOfMemoryError):
                self.graphs[shapes] = self.capture(inputs)
            if shapes not in self.graphs:  # a graph's memory is separate from that of the warm-up
                self.enabled = False
                torch.cuda.empty_cache()
                return self.step(**inputs)
        graph, static, output = self.graphs[shapes]
        for name, tensor in inputs.items():
            static[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return output.clone()

    def drop_graphs(self) -> None:
        """Frees the memory of captured graphs; the next call captures again."""
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
