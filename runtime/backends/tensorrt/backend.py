"""Runs a bundle's compiled engines with TensorRT or TensorRT for RTX: no torch, no ONNX Runtime.

All stages of an edit take turns in one block of activation memory. Inputs that do not change between runs stay on the
GPU. The library is imported when a backend is made.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import KontextError
from ...bundle import Bundle
from ...cuda_driver import CudaDriver, DeviceMemory
from ...engines import LIBRARIES, EngineEntry, check_budget, choose, chunks, load_library
from ..options import TensorRTOptions
from ..protocol import SamplerStep
from .stage import HeldArray, Stage, logger

Array = NDArray[Any]

SHARED = ("rope_cos", "rope_sin")
"""Inputs that are the same for every row of a batch; of all others the first axis is the batch."""


class TensorRTBackend:
    """Engines of one bundle on one GPU.

    Args:
        bundle: with engines for this GPU and this version of the library.
        library: rtx or tensorrt.
        options: None: the defaults.
        driver, module: the GPU and the library's module; None to find them.

    Raises:
        KontextError: no library, no GPU, no engine that fits them, or no weight streaming where a budget is given.
    """

    def __init__(
        self,
        bundle: Bundle,
        library: str,
        options: TensorRTOptions | None = None,
        *,
        driver: CudaDriver | None = None,
        module: Any = None,
    ) -> None:
        options = options or TensorRTOptions()
        options.check(library, bundle)
        self.bundle = bundle
        self.library = LIBRARIES[library]
        self.module = load_library(library) if module is None else module
        self.driver = CudaDriver() if driver is None else driver
        self.engines = choose(bundle, library, self.module.__version__, self.driver.target)
        self.weight_budget = options.weight_budget
        if self.weight_budget is not None:
            check_budget(self.engines["transformer"])
        self.logger = logger(self.module)
        self.runtime = self.module.Runtime(self.logger)
        self.stages: dict[str, Stage] = {}
        self.scratch: DeviceMemory | None = None

    def stage(self, graph: str) -> Stage:
        """The engine of `graph`, loaded at its first use.

        Raises:
            KontextError: its file is damaged, the library refuses it, or the GPU has no room for it.
        """
        if graph not in self.stages:
            entry = self.engines[graph]
            self.stages[graph] = Stage(
                self.module,
                self.runtime,
                self.driver,
                entry,
                self.bundle.graphs[graph].weights,
                read_checked(entry),
                self.logger,
                self.weight_budget,
            )
        return self.stages[graph]

    def hold(self, arrays: Mapping[str, Array]) -> dict[str, HeldArray]:
        """Puts inputs that several runs share on the GPU, once."""
        self.driver.make_current()
        held = {name: HeldArray(self.driver, array) for name, array in arrays.items()}
        self.driver.synchronize()
        return held

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Array]:
        """Runs a graph on arrays or held values and returns its outputs as arrays, by name.

        More rows than the engine takes at once go in several runs.

        Raises:
            KontextError: sizes that the engine was not built for, or a failure of the GPU.
        """
        self.driver.make_current()
        stage = self.stage(graph)
        rows = next(len(value) for name, value in inputs.items() if name not in SHARED)
        parts = []
        for part in chunks(rows, stage.entry.largest_batch):
            whole = part == slice(0, rows)
            given = (
                inputs
                if whole
                else {
                    name: value if name in SHARED else rows_of(value, part) for name, value in inputs.items()
                }
            )
            parts.append(self.run_once(stage, given))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_once(self, stage: Stage, inputs: Mapping[str, Any]) -> dict[str, Array]:
        needed = stage.prepare(inputs)
        if self.scratch is None or self.scratch.size < needed:
            self.scratch = None  # freed before the larger one is asked for
            self.scratch = self.driver.allocate(needed)
        return stage.run(self.scratch)

    def release(self, *graphs: str) -> None:
        """Drops engines, with their weights and buffers."""
        for graph in graphs:
            stage = self.stages.pop(graph, None)
            if stage is not None:
                stage.save_cache()
        if not self.stages:
            self.scratch = None


def rows_of(value: Any, part: slice) -> Any:
    """Some rows of an array or of a held one."""
    return value.rows(part) if isinstance(value, HeldArray) else value[part]


def read_checked(entry: EngineEntry) -> mmap.mmap:
    """The engine's file, mapped, if it is the one of the manifest: it is machine code, so it is always checked."""
    data = map_file(entry.path)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise KontextError(
            f"{entry.path} is damaged: its SHA-256 is not the manifest's; build the engines again"
        )
    return data


def map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as fault:  # ValueError: it is empty
        raise KontextError(f"cannot read {path}: {fault}") from None
