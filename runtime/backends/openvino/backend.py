"""OpenVINO as a backend: each graph is read, rewritten and compiled at its first use, and has one infer request.

docs/openvino.md lists the properties that are set, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
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

CACHED_BYTES = 256 << 20
"""Weights up to which a graph's compiled form is kept on disk: it holds a copy of them."""

NEVER_CACHED = ("transformer",)
"""A transformer from OpenVINO 2026.4's cache computes other values, 7 to 12 dB or NaN. A graph of one RotaryEmbedding
shows it: half of its outputs are wrong once it was exported and imported again."""


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
        self.requests: dict[str, ov.InferRequest] = {}
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
        if self.options.cache and small and graph not in NEVER_CACHED:
            cache = writable_cache("openvino")
            if cache is not None:  # else it is compiled at each start
                result["CACHE_DIR"] = str(cache)
        return result

    def request(self, graph: str) -> ov.InferRequest:
        """The infer request of `graph`, which is compiled at its first use.

        Raises:
            KontextError: OpenVINO cannot read or compile the graph.
        """
        if graph not in self.requests:
            path = self.bundle.graphs[graph].path
            try:
                model = self.core.read_model(path)  # maps the weights
                rewrite(model)
                compiled = self.core.compile_model(model, self.device, self.properties(graph))
                self.requests[graph] = compiled.create_infer_request()
            except RuntimeError as error:  # all of OpenVINO's exceptions
                raise KontextError(
                    f"{path} cannot be compiled for OpenVINO's {self.device}: {cause(error)}"
                ) from None
        return self.requests[graph]

    def hold(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """As `Backend.hold`: the arrays, contiguous, which OpenVINO reads in place."""
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Array]:
        """As `Backend.run`."""
        request = self.request(graph)
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
            self.requests.pop(graph, None)
        if self.low_memory:
            return_freed()


def cause(error: RuntimeError) -> str:
    """The last line of OpenVINO's message, which says what happened; the lines before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
