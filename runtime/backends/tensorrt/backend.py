"""Runs a bundle's compiled engines with TensorRT or TensorRT for RTX, without torch or ONNX Runtime.

All stages of an edit share one block of activation memory, since only one runs at a time. Inputs that several runs
share are copied to the GPU once. The library is imported when a backend is created.
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
from ....regular_files import open_regular
from ...bundle import Bundle
from ...bundle_files import REBUILT, check_sha256
from ...cuda_driver import CudaDriver, DeviceMemory
from ...engines import LIBRARIES, EngineEntry, check_budget, choose_engines, chunks, load_library
from ...lora_slots import INPUTS as LORA_INPUTS
from ..options import TensorRTOptions
from ..protocol import SamplerStep
from ..runnable import Formats
from .stage import HeldArray, Stage, logger

Array = NDArray[Any]

SHARED = ("rope_cos", "rope_sin", *LORA_INPUTS)
"""Inputs without a batch axis; the first axis of all others is the batch."""


class TensorRTBackend:
    """Engines of one bundle on one GPU.

    Args:
        bundle: with engines for this GPU and the installed version of the library.
        library: rtx or tensorrt.
        options: None: the defaults.
        driver, module: the GPU and the library's module; None: the first GPU and the installed module.

    Raises:
        KontextError: no library, no GPU, no engine for them, or a weight budget for engines without weight streaming.
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
        self.driver = CudaDriver(instead=Formats.of(bundle).instead()) if driver is None else driver
        self.engines = choose_engines(bundle, library, self.module.__version__, self.driver.target)
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
            KontextError: its file is damaged, the library cannot load it, or the GPU is out of memory.
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
        """As `Backend.hold`: copies the arrays to the GPU."""
        self.driver.make_current()
        held = {name: HeldArray(self.driver, array) for name, array in arrays.items()}
        self.driver.synchronize()
        return held

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Array]:
        """As `Backend.run`. A batch larger than the engine takes is split into several runs."""
        self.driver.make_current()
        stage = self.stage(graph)
        rows = next(len(value) for name, value in inputs.items() if name not in SHARED)
        slices = chunks(rows, stage.entry.largest_batch)
        if len(slices) == 1:
            return self.run_once(stage, inputs)
        outputs = [
            self.run_once(
                stage,
                {name: value if name in SHARED else rows_of(value, each) for name, value in inputs.items()},
            )
            for each in slices
        ]
        return {name: np.concatenate([each[name] for each in outputs]) for name in outputs[0]}

    def run_once(self, stage: Stage, inputs: Mapping[str, Any]) -> dict[str, Array]:
        needed = stage.prepare(inputs)
        if self.scratch is None or self.scratch.size < needed:
            self.scratch = None  # freed before the larger one is allocated
            self.scratch = self.driver.allocate(needed)
        return stage.run(self.scratch)

    def release(self, *graphs: str) -> None:
        """As `Backend.release`: drops engines with their weights and buffers."""
        for graph in graphs:
            stage = self.stages.pop(graph, None)
            if stage is not None:
                stage.save_cache()
        if not self.stages:
            self.scratch = None


def rows_of(value: Any, rows: slice) -> Any:
    """Some rows of an array or of a held array."""
    return value.rows(rows) if isinstance(value, HeldArray) else value[rows]


def read_checked(entry: EngineEntry) -> mmap.mmap:
    """The engine's file, memory-mapped. Its SHA-256 is always checked, since it is machine code."""
    data = map_file(entry.path)
    check_sha256(entry.path, hashlib.sha256(data).hexdigest(), entry.sha256, REBUILT["engines/"])
    return data


def map_file(path: Path) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise KontextError(f"cannot read {path}: {error}") from None
