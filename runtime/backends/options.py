"""One record of options for each backend: `Pipeline.load(bundle, backend=TorchOptions(offload=True))`.

Each record checks itself when it is made, and with the device and the bundle in `check`. Importing this loads no
backend; `open` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, get_args

from ...errors import KontextError

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .protocol import Backend

Precision = Literal["auto", "16-bit", "fp8", "int8"]
Compute = Literal["fp32", "fp16", "bf16"]


class BackendOptions(Protocol):
    """What selects and configures a backend; a record like this one makes `Pipeline.load` take another backend."""

    def check(self, device: str, bundle: Bundle) -> None:
        """Raises KontextError if the backend cannot run `bundle` on `device` with these options.

        This needs no library of the backend's: what depends on the GPU is checked when the backend opens.
        """

    def open(self, device: str, bundle: Bundle, *, low_memory: bool) -> Backend:
        """The backend, ready to run.

        Args:
            device: what `check` accepts.
            bundle: read and checked.
            low_memory: hold no more memory than the graph that runs needs, also where that is slower.

        Raises:
            KontextError: a library or the device is missing; says what to install or to use instead.
        """


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """ONNX Runtime, on a CPU or with CUDA.

    Args:
        threads: CPU cores to use; None: all that this process may use.
    """

    name: ClassVar[str] = "onnxruntime"
    devices: ClassVar[tuple[str, ...]] = ("auto", "cpu", "cuda")
    selected_by: ClassVar[str] = "--backend onnxruntime"

    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise KontextError(f"threads must be 1 or more, not {self.threads}")

    def check(self, device: str, bundle: Bundle) -> None:
        check_device(device, self.name, self.devices)

    def open(self, device: str, bundle: Bundle, *, low_memory: bool) -> Backend:
        from .onnxruntime import OnnxRuntimeBackend

        graphs = {name: entry.path for name, entry in bundle.graphs.items()}
        return OnnxRuntimeBackend(graphs, device, self, files=bundle.linked_files, low_memory=low_memory)


@dataclass(frozen=True)
class TorchOptions:
    """PyTorch, with Triton kernels for the transformer, on a CPU or with CUDA. The defaults are chosen by the device.

    Args:
        offload: keep the transformer's blocks in host memory and copy each to the GPU while the one before it
            computes; the other networks' linears are copied for each use.
        compile: let torch.compile generate the code of each kind of block.
        cache: an approximation: at a step where the first block's effect on the target differs by no more than this
            share (such as 0.1) from that at the last step computed in full, reuse the other blocks' effect.
        reuse_reference: an approximation: compute the references' tokens at every this many steps only and reuse
            their keys and values in between.
        activations: what the inputs of linears with quantized weights are quantized to.
        attention: what attention computes in.
        graphs: capture the step as a CUDA graph; never with `offload`.
        tiled: decode pictures in tiles; False: only if the GPU has no room for a whole one.
        compute: what every network computes in; None: what the bundle says of each.
    """

    name: ClassVar[str] = "torch"
    devices: ClassVar[tuple[str, ...]] = ("auto", "cpu", "cuda")
    selected_by: ClassVar[str] = "--backend torch"

    offload: bool = False
    compile: bool = False
    cache: float | None = None
    reuse_reference: int | None = None
    activations: Precision = "auto"
    attention: Precision = "auto"
    graphs: bool = True
    tiled: bool = False
    compute: Compute | None = None

    def __post_init__(self) -> None:
        if self.cache is not None and not (0 < self.cache < math.inf):
            raise KontextError(
                f"cache must be a relative change above 0, such as 0.1, not {self.cache:g}: leave it out to run every "
                "block"
            )
        if self.reuse_reference is not None and self.reuse_reference < 2:
            raise KontextError(
                f"reuse_reference must be 2 steps or more, not {self.reuse_reference}: leave it out to compute the "
                "references at each step"
            )
        for name, value, known in (
            ("activations", self.activations, get_args(Precision)),
            ("attention", self.attention, get_args(Precision)),
            ("compute", self.compute, (None, *get_args(Compute))),
        ):
            if value not in known:
                names = ", ".join(each for each in known if each is not None)
                raise KontextError(f"{name} {value!r} is not known: choose from {names}")

    def check(self, device: str, bundle: Bundle) -> None:
        check_device(device, self.name, self.devices)
        if bundle.links:
            raise KontextError(
                f"{bundle.folder} was exported with --link-weights, which only the onnxruntime backend reads: use "
                "--backend onnxruntime, or export it without --link-weights"
            )

    def open(self, device: str, bundle: Bundle, *, low_memory: bool) -> Backend:
        try:
            from .torch.backend import TorchBackend
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise KontextError(
                "the torch backend needs PyTorch: pip install 'kontext-export[export,gpu]'"
            ) from None
        return TorchBackend(bundle, device, self)


@dataclass(frozen=True)
class TensorRTOptions:
    """The bundle's compiled engines, with TensorRT for RTX (device "rtx") or TensorRT (device "tensorrt").

    Args:
        weight_budget: bytes of GPU memory for the weights of each engine that was built with weight streaming, the
            transformer's among them; the rest is streamed from host memory in every run. None: as much as fits.
    """

    name: ClassVar[str] = "tensorrt"
    devices: ClassVar[tuple[str, ...]] = ("rtx", "tensorrt")
    selected_by: ClassVar[str] = "--device rtx or --device tensorrt"

    weight_budget: int | None = None

    def __post_init__(self) -> None:
        if self.weight_budget is not None and self.weight_budget < 0:
            raise KontextError(f"a weight budget is 0 bytes or more, not {self.weight_budget}")

    def check(self, device: str, bundle: Bundle) -> None:
        check_device(device, self.name, self.devices)

    def open(self, device: str, bundle: Bundle, *, low_memory: bool) -> Backend:
        from .tensorrt.backend import TensorRTBackend

        return TensorRTBackend(bundle, device, self)


BACKENDS = (OnnxRuntimeOptions.name, TorchOptions.name)
"""What `Pipeline.load(backend=…)` and `--backend` take as strings; compiled engines are chosen by the device."""

DEVICES = (*OnnxRuntimeOptions.devices, *TensorRTOptions.devices)


def default_options(backend: str, device: str) -> OnnxRuntimeOptions | TorchOptions | TensorRTOptions:
    """The record with the defaults of a backend named in `BACKENDS`.

    Raises:
        KontextError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise KontextError(f"backend {backend!r} is not known: choose from {', '.join(BACKENDS)}")
    if backend == TorchOptions.name:
        return TorchOptions()
    return TensorRTOptions() if device in TensorRTOptions.devices else OnnxRuntimeOptions()


def check_device(device: str, backend: str, devices: tuple[str, ...]) -> None:
    if device not in DEVICES:
        raise KontextError(f"device {device!r} is not known: choose from {', '.join(DEVICES)}")
    if device not in devices:
        names = " or ".join(each for each in devices if each != "auto")
        raise KontextError(f"the {backend} backend runs on {names}, not on {device!r}")
