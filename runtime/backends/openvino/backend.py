"""OpenVINO as a backend: each graph is read, rewritten and compiled at its first use, and has one infer request. The
graphs of large bundles are compiled again for inputs of other shapes.

docs/openvino.md lists the properties that are set, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ....errors import KontextError
from ...bundle import OUTPUTS, Bundle
from ...cache import writable_cache
from ...glibc_malloc import map_large_blocks, return_freed
from ..onnxruntime import allowed_cores
from ..options import OpenVINOOptions
from ..protocol import SamplerStep
from .device import HINTS, choose_compute, choose_device
from .rewrite import rewrite

Array = NDArray[Any]

FIXED_SHAPES_BYTES = 2 << 30
"""A bundle's weights from which on graphs are compiled for the shapes of their inputs. With shapes that vary, OpenVINO
2026.4 keeps the results of every block: 17 GB after a step of FLUX's transformer with INT4 weights at 512x512."""

CACHED_BYTES = 256 << 20
"""Weights up to which a graph's compiled form is kept on disk: it holds a copy of them."""

NEVER_CACHED = ("transformer",)
"""A transformer from OpenVINO 2026.4's cache computes other values, 7 to 12 dB or NaN. A graph of one RotaryEmbedding
shows it: half of its outputs are wrong once it was exported and imported again."""


Shapes = dict[str, tuple[int, ...]]


@dataclass
class Compiled:
    """A graph's infer request, and the shapes of the inputs that it was compiled for; None for all."""

    request: ov.InferRequest
    shapes: Shapes | None


class OpenVINOBackend:
    """Compiled graphs of one bundle.

    Args:
        bundle: whose graphs it runs.
        device: as in `OpenVINOOptions.devices`; "openvino" alone is the CPU.
        options: None: the defaults.
        low_memory: return freed memory to the system whenever a graph is released.

    Raises:
        KontextError: OpenVINO has no such device here, or the device does not compute in what `options` want.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "openvino",
        options: OpenVINOOptions | None = None,
        *,
        low_memory: bool = False,
    ) -> None:
        self.bundle = bundle
        self.options = OpenVINOOptions() if options is None else options
        self.low_memory = low_memory
        self.core = ov.Core()
        self.device = choose_device(device, self.core.available_devices)
        self.capabilities = tuple(self.core.get_property(self.device, "OPTIMIZATION_CAPABILITIES"))
        self.has_fixed_shapes = bundle.weight_bytes >= FIXED_SHAPES_BYTES
        self.compiled: dict[str, Compiled] = {}
        self.computes = {
            graph: choose_compute(
                graph,
                self.options.compute,
                bundle.manifest["precision"]["networks"][graph],
                self.device,
                self.capabilities,
            )
            for graph in bundle.graphs
        }
        if low_memory:
            map_large_blocks()

    def properties(self, graph: str) -> dict[str, Any]:
        """What `graph` is compiled with."""
        result: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[self.computes[graph]],
        }
        if self.device == "CPU":
            result["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # else it rounds activations to 8 bits
            threads = allowed_cores() if self.options.threads is None else self.options.threads
            if threads is not None:
                result["INFERENCE_NUM_THREADS"] = threads
        small = self.bundle.graphs[graph].weights.stat().st_size <= CACHED_BYTES
        if self.options.cache and small and not self.has_fixed_shapes and graph not in NEVER_CACHED:
            cache = writable_cache("openvino")
            if cache is not None:  # else it is compiled at each start
                result["CACHE_DIR"] = str(cache)
        return result

    def request(self, graph: str, inputs: Mapping[str, Any]) -> ov.InferRequest:
        """The infer request of `graph`, which is compiled at its first use and for large bundles whenever the shapes of
        `inputs` change.

        Raises:
            KontextError: OpenVINO cannot read or compile the graph.
        """
        kept = self.compiled.get(graph)
        shapes: Shapes | None = None
        if self.has_fixed_shapes:
            shapes = {name: np.shape(value) for name, value in inputs.items()}
        if kept is None or kept.shapes != shapes:
            self.compiled.pop(graph, None)  # before there are two
            kept = self.compiled[graph] = Compiled(self.compile(graph, shapes), shapes)
        return kept.request

    def compile(self, graph: str, shapes: Shapes | None) -> ov.InferRequest:
        """A new infer request of `graph`, for inputs of these shapes or of all."""
        path = self.bundle.graphs[graph].path
        # Compares its SHA-256. OpenVINO finds weights beside a file only, and so reads it itself.
        self.bundle.graph_bytes(graph)
        try:
            model = self.core.read_model(path)  # maps the weights
            rewrite(model)
            if shapes is not None:
                names = {name for port in model.inputs for name in port.get_names()}
                model.reshape({name: list(shape) for name, shape in shapes.items() if name in names})
            return self.core.compile_model(model, self.device, self.properties(graph)).create_infer_request()
        except RuntimeError as error:  # all of OpenVINO's exceptions
            raise KontextError(
                f"{path} cannot be compiled for OpenVINO's {self.device}: {cause(error)}"
            ) from None

    def hold(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """As `Backend.hold`: the arrays, contiguous, which OpenVINO reads in place."""
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Array]:
        """As `Backend.run`."""
        request = self.request(graph, inputs)
        compiled = request.get_compiled_model()
        feeds = {
            port: np.ascontiguousarray(inputs[name], port.get_element_type().to_dtype())
            for port in compiled.inputs
            for name in port.get_names() & set(inputs)
        }
        try:
            found = request.infer(feeds, share_inputs=True)
        except RuntimeError as error:
            raise KontextError(f"{graph} failed in OpenVINO: {cause(error)}") from None
        return {
            name: array
            for port, array in found.items()
            for name in OUTPUTS[graph]
            if name in port.get_names()
        }

    def release(self, *graphs: str) -> None:
        """As `Backend.release`: drops compiled graphs with their weights."""
        for graph in graphs:
            self.compiled.pop(graph, None)
        if self.low_memory:
            return_freed()


def cause(error: RuntimeError) -> str:
    """The last line of OpenVINO's message, which says what happened; the lines before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
