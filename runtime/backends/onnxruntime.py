"""Runs a bundle's graphs in ONNX Runtime: one session for each graph, created at its first use.

On a GPU, inputs that several runs share are copied once and runs use I/O binding; on a CPU arrays are passed directly.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ComputationError, KontextError
from ...installation import install_command
from ...regular_files import open_regular
from ..cuda_driver import library_name
from ..glibc_malloc import map_large_blocks, return_freed
from .onnxruntime_library import check_provider, first_line, load_onnxruntime, warn_of_hidden_gpu
from .options import OnnxRuntimeOptions
from .placement import RECORD, heavy_on_cpu, placed_operators
from .plugins import Plugin, add_plugin, devices_of, plugin_of
from .protocol import SamplerStep
from .runnable import Formats

if TYPE_CHECKING:
    import onnxruntime

Array = NDArray[Any]

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Device → ONNX Runtime's execution providers; the first must be available."""

FP8_FUSION = re.compile(r"float8\w+\)' of input parameter .* of operator \(MatMulIntegerToFloat\)")
"""In the error with which ONNX Runtime before 1.32 refuses products of FP8 that it fused into INT8's operator itself.
It runs them without fusions of quantized operators, which other formats need."""

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Option of ONNX Runtime: where the files are that a graph given as bytes takes its weights from."""

STOP_SPINNING = ("session.force_spinning_stop", "1")
"""Option of ONNX Runtime, and its value. Without it a session's threads spin for 40 ms after a run, on the cores that
the next graph's session wants: an edit of the embedded model in 4 steps takes three times as long."""

LEAVE_INPUTS = ("session.qdq_matmulnbits_accuracy_level", "0")
"""Option of ONNX Runtime, and its value. Its default of 4 lets MatMulNBits, which it makes of DequantizeLinear and
MatMul, round its other input to 8 bits in blocks on a CPU."""

FATAL_ONLY = 4
"""Log level of ONNX Runtime: its errors are raised as exceptions and need not be logged too."""


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, read when they are accessed."""
    with open_regular(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def choose_device(device: str, available: Sequence[str], instead: str = "use --device cpu") -> str:
    """Resolves "auto": CUDA if this ONNX Runtime has it, else the CPU.

    Args:
        device: auto, cpu or cuda.
        available: this ONNX Runtime's providers.
        instead: what an error says would work.

    Raises:
        KontextError: this ONNX Runtime does not have the device.
    """
    if device == "auto":
        if PROVIDERS["cuda"][0] in available:
            return "cuda"
        warn_of_hidden_gpu()
        return "cpu"
    check_provider(device, PROVIDERS[device][0], available, instead)
    return device


class OnnxRuntimeBackend:
    """Sessions over the graphs of one bundle.

    Args:
        graphs: name → ONNX file.
        read: the bytes of a graph's file, by the graph's name: `Bundle.graph_bytes`. None: whatever the file holds.
        device: auto, cpu, cuda, or that of a plug-in provider (`plugins.WHEELS`).
        options: None: the defaults.
        files: name in the graphs → file for all files that they take weights from; needed if any of them is not beside
            the graphs.
        low_memory: on a CPU, keep no memory between the operators of a run: ONNX Runtime's arena keeps several times
            what is in use at once.
        formats: of the bundle; a device without kernels for them is refused. None: ONNX Runtime finds out.
    """

    def __init__(
        self,
        graphs: Mapping[str, Path],
        device: str = "auto",
        options: OnnxRuntimeOptions | None = None,
        *,
        read: Callable[[str], bytes] | None = None,
        files: Mapping[str, Path] | None = None,
        low_memory: bool = False,
        formats: Formats | None = None,
    ) -> None:
        library = load_onnxruntime()
        self.graphs = graphs
        self.read = read or (lambda graph: graphs[graph].read_bytes())
        self.automatic = device == "auto"
        self.formats = Formats() if formats is None else formats
        self.plugin = plugin_of(device, None if options is None else options.provider)
        if self.plugin is not None:
            self.automatic, self.device = (
                False,
                device if options is None or not options.provider else "plug-in",
            )
            devices_of(self.plugin)  # must be there
        else:
            self.device = choose_device(device, library.get_available_providers(), self.formats.instead())
        self.refuse_missing_kernels()
        threads = None if options is None else options.threads
        self.threads = allowed_cores() if threads is None else threads
        self.files = dict(files or {})
        self.low_memory = low_memory
        self.leave_inputs = options is not None and options.activations == "16-bit"
        self.memory = "cuda" if self.device == "cuda" else "cpu"
        self.bound = self.device == "cuda"
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.has_run = False
        self.missing_library = preload_cuda(library) if self.bound else ""

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """The session of `graph`, created at its first use.

        Raises:
            KontextError: ONNX Runtime cannot load the graph, or the device is out of memory.
        """
        if graph not in self.sessions:
            self.sessions[graph] = self.create_session(graph)
        return self.sessions[graph]

    def create_session(self, graph: str) -> onnxruntime.InferenceSession:
        data = self.read(graph)
        try:
            session = self.load(graph, data)
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            # Without CUDA it looks for the CPU's kernels, and complains of those that are not there.
            missing = self.missing_cuda() if self.bound else ""
            what = f"{self.graphs[graph]} cannot be loaded"
            self.fall_back(self.not_started(missing) if missing else self.explain(what, error))
            return self.create_session(graph)
        if self.provider not in session.get_providers():
            self.fall_back(self.not_started(self.missing_cuda() or "its libraries cannot be loaded"))
            return self.create_session(graph)
        return session

    def missing_cuda(self) -> str:
        """What CUDA lacks on this machine, in words, or ""."""
        return missing_driver() or self.missing_library

    def not_started(self, reason: str) -> str:
        return (
            f"device {self.device!r} could not be started ({reason}): check the driver (nvidia-smi) and the CUDA "
            f"libraries ({install_command('gpu')})"
        )

    def load(self, graph: str, data: bytes) -> onnxruntime.InferenceSession:
        """A session of `graph`, whose file holds `data`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.low_memory:
            map_large_blocks()
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        if self.device == "cpu":
            sum_exactly(options, data)
        if self.files:
            maps = [map_file(path) for path in self.files.values()]
            sizes = [len(file) for file in maps]
            options.add_external_initializers_from_files_in_memory(list(self.files), maps, sizes)
        # The graph is passed as the bytes that were checked; weights are found beside its file.
        options.add_session_config_entry(WEIGHTS_FOLDER, str(self.graphs[graph].parent))
        options.add_session_config_entry(*STOP_SPINNING)
        if self.leave_inputs:
            options.add_session_config_entry(*LEAVE_INPUTS)
        if self.plugin is not None:
            return self.load_on_plugin(self.graphs[graph], data, options, self.plugin)

        def start() -> onnxruntime.InferenceSession:
            # Its own fallback would run on the CPU although a GPU was asked for, and print that on stdout.
            return onnxruntime.InferenceSession(data, options, providers=self.providers(), enable_fallback=0)

        try:
            return start()
        except Exception as error:
            if FP8_FUSION.search(str(error)) is None:
                raise
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            return start()

    def load_on_plugin(
        self, path: Path, data: bytes, options: onnxruntime.SessionOptions, plugin: Plugin
    ) -> onnxruntime.InferenceSession:
        """A session on a plug-in provider; warns of heavy operators that it leaves to the CPU."""
        import onnxruntime

        options.add_session_config_entry(*RECORD)
        add_plugin(options, plugin)
        session = onnxruntime.InferenceSession(data, options)
        heavy = heavy_on_cpu(placed_operators(session))
        if heavy:
            operators = ", ".join(f"{count} {name}" for name, count in heavy.items())
            warnings.warn(f"{path.name}: {self.provider} leaves to the CPU: {operators}", stacklevel=2)
        return session

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the device's provider."""
        if self.plugin is not None:
            return str(devices_of(self.plugin)[0].ep_name)
        return PROVIDERS[self.device][0]

    def explain(self, what: str, error: Exception) -> str:
        """One line: what failed, on which provider, and why."""
        reason = cuda_failure(error) or first_line(error)
        if is_exhausted(str(error)):
            reason = "out of memory: try a smaller --size or fewer --num-images"
        return f"{what} on {self.provider}: {reason}"

    def fall_back(self, reason: str) -> None:
        """Goes on on the CPU, with a warning, if the device was not asked for and nothing has run on it.

        Raises:
            ComputationError: it was asked for, or has run something, or is the CPU.
            KontextError: the CPU has no kernels for the bundle.
        """
        if self.device == "cpu":
            raise ComputationError(reason) from None
        if not self.automatic or self.has_run:
            raise ComputationError(f"{reason}; or {self.formats.instead()}") from None
        self.device, self.memory, self.bound = "cpu", "cpu", False
        self.sessions.clear()
        self.refuse_missing_kernels()
        warnings.warn(f"no usable GPU, running on the CPU: {reason}", stacklevel=2)

    def refuse_missing_kernels(self) -> None:
        """Raises KontextError if ONNX Runtime has no kernels for the bundle on the device."""
        refusal = self.formats.refusal(self.device)
        if refusal:
            raise KontextError(refusal)

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """The device's providers with their options."""
        settings: dict[str, dict[str, str]] = {
            # The default doubles each extension of the arena, and an exhaustive search of convolutions takes seconds.
            "CUDAExecutionProvider": {
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "HEURISTIC",
            }
        }
        return [(name, settings.get(name, {})) for name in PROVIDERS[self.device]]

    def hold(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """As `Backend.hold`: values are `OrtValue`s on a GPU, the arrays themselves on a CPU."""
        if not self.bound:
            return dict(arrays)
        import onnxruntime

        put = onnxruntime.OrtValue.ortvalue_from_numpy
        return {name: put(array, self.memory, 0) if array.size else array for name, array in arrays.items()}

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Array]:
        """As `Backend.run`."""
        session = self.session(graph)
        names = [output.name for output in session.get_outputs()]
        try:
            if self.bound:
                outputs = run_bound(session, inputs, names)
            else:
                outputs = session.run(names, dict(inputs))
        except Exception as error:
            self.fall_back(self.explain(f"{graph} failed in ONNX Runtime", error))
            return self.run(graph, inputs, step)
        self.has_run = True
        return dict(zip(names, outputs, strict=True))

    def release(self, *graphs: str) -> None:
        """As `Backend.release`: drops sessions with their weights."""
        for graph in graphs:
            self.sessions.pop(graph, None)
        if self.low_memory:
            return_freed()


def sum_exactly(options: onnxruntime.SessionOptions, graph: bytes) -> None:
    """Lets products of INT8 be added in 32 bits on x86 processors without VNNI, not in 16 bits where they saturate; it
    changes nothing on others. Only if the graph, of its file's bytes, multiplies integers by operators: what ONNX
    Runtime fuses from DequantizeLinear has packed weights, which it would rewrite."""
    if b"MatMulInteger" in graph and b"DequantizeLinear" not in graph:
        options.add_session_config_entry("session.x64quantprecision", "1")


def run_bound(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, Any], names: Sequence[str]
) -> list[Array]:
    """One run with I/O binding: held values are used in place, arrays are copied in and outputs out."""
    binding = session.io_binding()
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        else:
            binding.bind_ortvalue_input(name, value)
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return list(binding.copy_outputs_to_cpu())


def preload_cuda(library: ModuleType) -> str:
    """Loads CUDA and cuDNN from pip's packages; returns what is missing, in words, or "". ONNX Runtime would print
    that, here and again when it creates a session."""
    library.set_default_logger_severity(FATAL_ONLY)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        library.preload_dlls()
    found = re.search(r"Failed to load (\S+?):", printed.getvalue())
    return f"{found[1]} cannot be loaded" if found else ""


def missing_driver() -> str:
    """That there is no NVIDIA driver, in words, or ""."""
    name = library_name()
    try:
        ctypes.CDLL(name)
    except OSError:
        return f"there is no NVIDIA driver, {name}"
    return ""


def cuda_failure(error: Exception) -> str | None:
    """CUDA's own words in ONNX Runtime's message, such as "no CUDA-capable device is detected"; None if it has
    none."""
    found = re.search(r"CU(?:DA|BLAS|DNN) failure \d+: ([^;]+?) *;", str(error))
    return found and found[1]


def allowed_cores() -> int | None:
    """The number of cores that this process is limited to (`taskset`, a container's cpuset); None if it is not.

    ONNX Runtime would start a thread for each of the machine's cores, and threads that share a core are slow.
    """
    if not hasattr(os, "sched_getaffinity"):  # Linux only
        return None
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else None


def is_exhausted(message: str) -> bool:
    """Whether ONNX Runtime's message is about memory: its arenas', CUDA's, cuBLAS', or C++'s."""
    return bool(
        re.search(
            "Failed to allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|bad_alloc|bad allocation",
            message,
        )
    )
