"""Runs a bundle's graphs in ONNX Runtime: one session a graph, made when first used, dropped when told.

On a GPU, inputs that do not change between runs stay on the device, and I/O is bound; on a CPU arrays go in as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import KontextError

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[Any]

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Device → execution providers, the first of which must be there."""

DEVICES = ("auto", *PROVIDERS)

WARNING_AND_ABOVE, ERROR_AND_ABOVE = 2, 3


def choose_device(device: str, available: list[str]) -> str:
    """Resolves "auto" (CUDA where there is one, else the CPU) and refuses what this ONNX Runtime does not have.

    TensorRT is never chosen by itself: it builds engines for minutes on the first run.
    """
    if device not in DEVICES:
        raise KontextError(f"device {device!r} is not known: choose from {', '.join(DEVICES)}")
    if device == "auto":
        return "cuda" if PROVIDERS["cuda"][0] in available else "cpu"
    if PROVIDERS[device][0] not in available:
        raise KontextError(
            f"device {device!r} needs ONNX Runtime's {PROVIDERS[device][0]}, which this installation does not have "
            f"(it has {', '.join(available)}): pip install 'kontext-export[gpu]', or use --device cpu"
        )
    return device


class OnnxRuntimeBackend:
    """Sessions over the graphs of one bundle."""

    def __init__(self, graphs: Mapping[str, Path], device: str = "auto") -> None:
        import onnxruntime

        self.graphs = graphs
        self.device = choose_device(device, onnxruntime.get_available_providers())
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """The session of `graph`, made at its first use.

        Raises:
            KontextError: ONNX Runtime refuses the graph, or the device has no room for it.
        """
        if graph not in self.sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = ERROR_AND_ABOVE
            try:
                session = onnxruntime.InferenceSession(
                    str(self.graphs[graph]), options, providers=list(PROVIDERS[self.device])
                )
            except Exception as fault:  # pybind exceptions of ONNX Runtime have no common public base
                raise KontextError(f"{self.graphs[graph]} cannot be loaded: {first_line(fault)}") from None
            if PROVIDERS[self.device][0] not in session.get_providers():
                raise KontextError(
                    f"device {self.device!r} could not be started (ONNX Runtime fell back to "
                    f"{session.get_providers()[0]}): check the driver and CUDA libraries, or use --device cpu"
                )
            self.sessions[graph] = session
        return self.sessions[graph]

    def hold(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Puts inputs that several runs share on the device, once; on a CPU they stay arrays."""
        if not self.on_gpu:
            return dict(arrays)
        import onnxruntime

        return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in arrays.items()}

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Runs a graph on arrays or held values and returns its outputs as arrays, by name."""
        session = self.session(graph)
        names = [output.name for output in session.get_outputs()]
        try:
            outputs = self.run_bound(session, inputs, names) if self.on_gpu else session.run(names, dict(inputs))
        except Exception as fault:
            raise KontextError(f"{graph} failed in ONNX Runtime: {first_line(fault)}") from None
        return dict(zip(names, outputs, strict=True))

    @staticmethod
    def run_bound(
        session: onnxruntime.InferenceSession, inputs: Mapping[str, Any], names: list[str]
    ) -> list[Array]:
        binding = session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def release(self, *graphs: str) -> None:
        """Drops sessions, and with them their weights."""
        for graph in graphs:
            self.sessions.pop(graph, None)


def first_line(fault: Exception) -> str:
    """ONNX Runtime's messages run over many lines; the first says what happened."""
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__
