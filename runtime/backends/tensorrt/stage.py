"""One engine on the GPU: loaded with its weights, and run with its own buffers and shared activation memory.

`prepare` takes the inputs and returns how much activation memory they need; `run` gets it and returns the outputs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import KontextError
from ....files import write_atomic
from ...cache import cache_folder, read_cached
from ...cuda_driver import CapturedRun, CudaDriver, DeviceMemory
from ...engines import EngineEntry
from ...units import gigabytes
from .weights import MappedWeights

Array = NDArray[Any]

ACTIVATION_SHARE = 4
"""With weight streaming at most 1/ACTIVATION_SHARE of the GPU's free memory is reserved for activations: an engine
reports what its largest shapes need, and most runs need far less."""


class HeldArray:
    """An array on the GPU, or some of its rows."""

    def __init__(self, driver: CudaDriver, array: Array) -> None:
        self.array = np.ascontiguousarray(array)  # must stay alive until the upload is done
        self.shape = self.array.shape
        self.memory = driver.allocate(self.array.nbytes)
        self.address = self.memory.address
        driver.upload(self.memory, self.array, self.array.nbytes)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, rows: slice) -> HeldArray:
        result = object.__new__(HeldArray)
        result.memory, result.array = self.memory, self.array[rows]
        result.shape = result.array.shape
        result.address = self.address + rows.start * (self.array.nbytes // max(len(self), 1))
        return result


def logger(module: Any) -> Any:
    """A logger of the library that keeps the last error, to be part of a one-line message."""

    class LastError(module.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self.error = message

    return LastError()


class Stage:
    """An engine ready to run.

    Args:
        module, runtime, logger: the library's.
        driver: the GPU.
        entry: the engine's entry in the manifest.
        weights: the safetensors file of the graph's weights.
        plan: the engine's bytes, in memory or memory-mapped.
        weight_budget: see `TensorRTOptions`.
    """

    def __init__(
        self,
        module: Any,
        runtime: Any,
        driver: CudaDriver,
        entry: EngineEntry,
        weights: Path,
        plan: Any,
        logger: Any,
        weight_budget: int | None = None,
    ) -> None:
        self.module, self.driver, self.entry, self.logger = module, driver, entry, logger
        self.engine = runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise self.error("cannot be loaded")
        self.bound: list[DeviceMemory] = []
        self.weight_addresses: dict[str, int] = {}
        if entry.weights == "stripped":
            self.refit(MappedWeights(weights))
        elif entry.weights == "bound":
            self.bind(MappedWeights(weights))
        self.streams = self.engine.streamable_weights_size > 0 and self.stream(weight_budget)
        self.context, self.cache = self.make_context()
        self.profile = -1
        self.inputs: dict[str, DeviceMemory] = {}
        self.outputs: dict[str, tuple[DeviceMemory, Array]] = {}
        self.kept: list[Any] = []
        self.key: tuple[Any, ...] = ()
        self.captured: tuple[tuple[Any, ...], CapturedRun] | None = None
        self.warm: tuple[Any, ...] | None = None
        self.unsaved = False

    def error(self, what: str) -> KontextError:
        reason = f": {self.logger.error.strip()}" if self.logger.error else ""
        return KontextError(f"the {self.entry.target} engine of {self.entry.graph} {what}{reason}")

    # -- weights --

    def refit(self, weights: MappedWeights) -> None:
        """Gives the bundle's weights to an engine that was built without them, straight from the mapped file."""
        trt = self.module
        refitter = trt.Refitter(self.engine, self.logger)
        for name in refitter.get_all_weights():
            prototype = refitter.get_weights_prototype(name)
            tensor = weights.entry(name, stored_bytes(prototype.size, prototype.dtype))
            values = trt.Weights(prototype.dtype, weights.address(tensor), prototype.size)
            if not refitter.set_named_weights(name, values):
                raise self.error(f"does not take the weight {name}")
        if not refitter.refit_cuda_engine():
            raise self.error("cannot be given its weights")

    def bind(self, weights: MappedWeights) -> None:
        """Uploads the weights that are inputs of the engine; they stay at these addresses for every run."""
        for name in self.tensors("INPUT"):
            if name not in self.entry.profiles[0].inputs:
                tensor = weights.entry(name, self.bytes_of(name))
                memory = self.driver.allocate(tensor.size)
                self.driver.upload(memory, weights.address(tensor), tensor.size)
                self.bound.append(memory)
                self.weight_addresses[name] = memory.address
        self.driver.synchronize()

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor of fixed shape, with two 4-bit values in a byte."""
        return stored_bytes(math.prod(self.engine.get_tensor_shape(name)), self.engine.get_tensor_dtype(name))

    def stream(self, budget: int | None) -> bool:
        """Sets up weight streaming: weights beyond the budget stay in host memory and are copied in every run.

        Args:
            budget: bytes of weights to keep on the GPU; None: as many as fit.

        Returns:
            Whether any weights stay in host memory.
        """
        whole = self.engine.streamable_weights_size
        if budget is None:  # the library's automatic budget is truncated to 32 bits
            free = self.driver.free_bytes()
            budget = free - min(int(self.engine.device_memory_size_v2), free // ACTIVATION_SHARE)
        budget = min(budget, whole)
        self.engine.weight_streaming_budget_v2 = budget
        if self.engine.weight_streaming_budget_v2 != budget:  # the only sign of a failure
            raise self.error(
                f"cannot keep {gigabytes(budget)} of its {gigabytes(whole)} of weights on the GPU"
            )
        return bool(budget < whole)

    # -- runs --

    def tensors(self, mode: str) -> list[str]:
        wanted = getattr(self.module.TensorIOMode, mode)
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        return [name for name in names if self.engine.get_tensor_mode(name) == wanted]

    def make_context(self) -> tuple[Any, Any]:
        """An execution context whose activation memory is passed in, and TensorRT for RTX's kernel cache, else None."""
        trt = self.module
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        cache = None
        if hasattr(self.engine, "create_runtime_config"):
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            if self.captures_itself and not self.streams:  # TensorRT for RTX cannot combine the two
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if hasattr(config, "create_runtime_cache"):
                cache = config.create_runtime_cache()
                kernels = read_cached(self.cache_file)
                if kernels:
                    cache.deserialize(kernels)
                config.set_runtime_cache(cache)
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context(managed)
        if context is None:
            raise self.error("cannot be started")
        for name, address in self.weight_addresses.items():
            context.set_tensor_address(name, address)
        return context, cache

    @property
    def captures_itself(self) -> bool:
        """Whether the library captures runs as CUDA graphs: TensorRT for RTX does, for TensorRT `capture` does."""
        return hasattr(self.module, "CudaGraphStrategy")

    @property
    def cache_file(self) -> Path:
        """Where TensorRT for RTX keeps the kernels that it compiled for this GPU, across processes."""
        return cache_folder() / "engines" / f"{self.entry.path.stem}-{self.entry.sha256[:16]}.cache"

    def prepare(self, inputs: Mapping[str, Any]) -> int:
        """Uploads the inputs and sets their shapes; returns the bytes of activation memory that the run needs."""
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        self.check_inputs(shapes)
        profile = self.entry.profile_for(shapes)
        if profile != self.profile:
            if not self.context.set_optimization_profile_async(profile, self.driver.stream.value):
                raise self.error(f"refuses its profile {self.entry.profiles[profile].use}")
            self.driver.synchronize()
            self.profile = profile
        addresses = {}
        for name, value in inputs.items():
            if isinstance(value, HeldArray):
                self.kept.append(value)
                addresses[name] = value.address
            else:
                addresses[name] = self.upload(name, value)
            if not self.context.set_input_shape(name, shapes[name]):
                raise self.error(f"refuses {name} of {list(shapes[name])}")
            self.context.set_tensor_address(name, addresses[name])
        for name in self.tensors("OUTPUT"):
            shape = tuple(self.context.get_tensor_shape(name))
            dtype = self.module.nptype(self.engine.get_tensor_dtype(name))
            memory, array = self.outputs.get(name, (None, None))
            if memory is None or array is None or array.shape != shape:
                array = np.empty(shape, dtype)
                if memory is None or memory.size < array.nbytes:
                    memory = self.driver.allocate(array.nbytes)
                self.outputs[name] = memory, array
            addresses[name] = memory.address
            self.context.set_tensor_address(name, memory.address)
        self.key = (profile, tuple(shapes.items()), tuple(addresses.items()))
        return int(self.context.update_device_memory_size_for_shapes())

    def check_inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        expected = set(self.entry.profiles[0].inputs)
        if set(shapes) != expected:
            raise KontextError(
                f"{self.entry.graph} takes {', '.join(sorted(expected))}, not {', '.join(sorted(shapes))}"
            )

    def upload(self, name: str, value: Array) -> int:
        """Copies an input into its buffer, which is reused unless too small: captured runs contain its address."""
        dtype = np.dtype(self.module.nptype(self.engine.get_tensor_dtype(name)))
        array = np.ascontiguousarray(value, dtype)
        self.kept.append(array)
        if name not in self.inputs or self.inputs[name].size < array.nbytes:
            self.inputs[name] = self.driver.allocate(array.nbytes)
        self.driver.upload(self.inputs[name], array, array.nbytes)
        return self.inputs[name].address

    def run(self, scratch: DeviceMemory) -> dict[str, Array]:
        """Runs with the prepared inputs; the returned arrays belong to the caller."""
        self.context.set_device_memory(scratch.address, scratch.size)
        key = (*self.key, scratch.address)
        if self.captured is not None and self.captured[0] == key:
            self.captured[1].launch()
        elif self.warm == key and not self.captures_itself:
            self.capture(key)
        else:
            self.enqueue()
        results = {}
        for name, (memory, array) in self.outputs.items():
            self.driver.download(memory, array)
            results[name] = array.copy()
        self.driver.synchronize()
        self.kept.clear()
        self.unsaved = self.unsaved or self.warm != key
        if self.warm is None:
            self.save_cache()
        self.warm = key
        return results

    def enqueue(self) -> None:
        if not self.context.execute_async_v3(self.driver.stream.value):
            raise self.error("failed")

    def capture(self, key: tuple[Any, ...]) -> None:
        """Captures a run as a CUDA graph and launches it. It must have run before on the same memory, uncaptured."""
        self.captured = None
        self.driver.begin_capture()
        try:
            self.enqueue()
        finally:
            run = self.driver.end_capture()
        run.launch()
        self.captured = key, run

    def save_cache(self) -> None:
        """Writes the kernels that runs have compiled; a cache that cannot be written is no error."""
        if self.cache is None or not self.unsaved:
            return
        self.unsaved = False
        with contextlib.suppress(OSError):
            self.cache_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.cache_file, bytes(self.cache.serialize()))


def stored_bytes(count: int, dtype: Any) -> int:
    """Bytes of `count` values of a `dtype`, two 4-bit values in a byte (the library's `nbytes` is negative there)."""
    return math.ceil(count * dtype.itemsize)
