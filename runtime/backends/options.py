"""One record of options for each backend: `Pipeline.load(bundle, backend=TorchOptions(offload=True))`.

A record checks its values when it is made; `check` checks them with the device and the bundle. What depends on the
GPU is checked by the backend. Importing this module imports no backend and no library.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from ...errors import KontextError
from .runnable import CPU, Formats

if TYPE_CHECKING:
    from ..bundle import Bundle

MAX_THREADS = 1024
"""More are a mistake: a thread for each would exhaust the machine."""

Precision = Literal["auto", "16-bit", "fp8", "int8"]
Activations = Literal["auto", "16-bit", "fp8", "int8", "nvfp4"]
Compute = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """ONNX Runtime, on a CPU, with CUDA, or with a plug-in provider.

    Args:
        threads: CPU cores to use; None: all that this process may use.
        provider: LIBRARY[:key=value,…], a plug-in provider's library or the Python module of its wheel, with options of
            the provider's own; the device is then "auto".
        activations: "auto": on a CPU, ONNX Runtime rounds the inputs of linears with INT4 or INT8 weights to 8 bits
            where the graph does not say so, which is faster; "16-bit": it does not, as on a GPU.
    """

    name: ClassVar[str] = "onnxruntime"
    devices: ClassVar[tuple[str, ...]] = ("auto", "cpu", "cuda", "nv-rtx", "webgpu", "migraphx")
    selected_by: ClassVar[str] = "--backend onnxruntime"

    threads: int | None = None
    provider: str | None = None
    activations: Literal["auto", "16-bit"] = "auto"

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_choice("activations", self.activations, ("auto", "16-bit"))

    def check(self, device: str, bundle: Bundle) -> None:
        """Raises KontextError if the backend cannot run `bundle` on `device`; the backend checks what "auto" chose."""
        check_device(device, self.name, self.devices)
        if self.provider is not None and device != "auto":
            raise KontextError(
                f"--provider and --device {device} both say what runs the graphs: leave one out"
            )
        refusal = Formats.of(bundle).refusal(device)
        if refusal:
            raise KontextError(refusal)


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
        tiled: decode pictures in tiles; False: only if a whole one does not fit the GPU.
        compute: what every network computes in; None: what the bundle says of each.
    """

    name: ClassVar[str] = "torch"
    devices: ClassVar[tuple[str, ...]] = ("auto", "cpu", "cuda")
    selected_by: ClassVar[str] = "--backend torch"

    offload: bool = False
    compile: bool = False
    cache: float | None = None
    reuse_reference: int | None = None
    activations: Activations = "auto"
    attention: Precision = "auto"
    graphs: bool = True
    tiled: bool = False
    compute: Compute | None = None

    def __post_init__(self) -> None:
        check_type("cache", self.cache, int, float)
        for switch in ("offload", "compile", "graphs", "tiled"):
            check_switch(switch, getattr(self, switch))
        check_type("reuse_reference", self.reuse_reference, int)
        if self.cache is not None and not (0 < self.cache < math.inf):
            raise KontextError(
                f"cache must be a relative change above 0, such as 0.1, not {self.cache:g}: leave it out to run every "
                "block"
            )
        if self.cache is not None and self.cache > 1:
            warnings.warn(
                f"cache={self.cache:g} reuses a change of {self.cache:.0%}, so all steps but the first may be skipped: "
                "0.05 to 0.3 is usual",
                stacklevel=2,
            )
        if self.reuse_reference is not None and self.reuse_reference < 2:
            raise KontextError(
                f"reuse_reference must be 2 steps or more, not {self.reuse_reference}: leave it out to compute the "
                "references at each step"
            )
        for name, value, known in (
            ("activations", self.activations, get_args(Activations)),
            ("attention", self.attention, get_args(Precision)),
            ("compute", self.compute, (None, *get_args(Compute))),
        ):
            check_choice(name, value, known)

    def check(self, device: str, bundle: Bundle) -> None:
        """Raises KontextError if the backend cannot run `bundle` on `device`."""
        check_device(device, self.name, self.devices)
        check_links(self.name, bundle)


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
        check_type("weight_budget", self.weight_budget, int)
        if self.weight_budget is not None and self.weight_budget < 0:
            raise KontextError(f"a weight budget is 0 bytes or more, not {self.weight_budget}")

    def check(self, device: str, bundle: Bundle) -> None:
        """Raises KontextError if the backend cannot run `bundle` on `device`."""
        check_device(device, self.name, self.devices)


@dataclass(frozen=True)
class OpenVINOOptions:
    """OpenVINO, on a CPU (device "openvino"), an Intel GPU or an Intel NPU.

    Args:
        threads: CPU cores to use; None: all that this process may use.
        compute: what every network computes in, but for those that need fp32; None: what the bundle says of each, or
            fp32 where the device has no units for it.
        cache: keep compiled graphs with up to 256 MiB of weights in the user's cache folder.
    """

    name: ClassVar[str] = "openvino"
    devices: ClassVar[tuple[str, ...]] = (
        *("auto", "cpu"),
        *("openvino", "openvino:cpu", "openvino:gpu", "openvino:npu"),
    )
    selected_by: ClassVar[str] = "--backend openvino"

    threads: int | None = None
    compute: Compute | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_choice("compute", self.compute, (None, *get_args(Compute)))
        check_switch("cache", self.cache)

    def check(self, device: str, bundle: Bundle) -> None:
        """Raises KontextError if the backend cannot run `bundle` on `device`."""
        check_device(device, self.name, self.devices)
        check_links(self.name, bundle)  # OpenVINO reads weights beside the graph only
        if missing := Formats.of(bundle).missing_in_openvino:
            raise KontextError(f"{missing}: use --backend torch, or export it again with --weight-only")


BackendOptions: TypeAlias = OnnxRuntimeOptions | TorchOptions | TensorRTOptions | OpenVINOOptions

AUTO = "auto"
"""As a backend and as a device: the fastest that works here (`choose`)."""

BACKENDS = (OnnxRuntimeOptions.name, TorchOptions.name, OpenVINOOptions.name)
"""What `Pipeline.load(backend=…)` and `--backend` take as strings; compiled engines are chosen by the device."""

DEVICES = tuple(
    dict.fromkeys((*OnnxRuntimeOptions.devices, *TensorRTOptions.devices, *OpenVINOOptions.devices))
)


def check_threads(threads: object) -> None:
    check_type("threads", threads, int)
    if isinstance(threads, int) and not 1 <= threads <= MAX_THREADS:
        raise KontextError(f"threads must be from 1 to {MAX_THREADS}, not {threads}")


def check_switch(name: str, value: object) -> None:
    """Raises KontextError if what is on or off is something else: "no" would count as on."""
    if not isinstance(value, bool):
        raise KontextError(f"{name} must be True or False, not {value!r}")


def check_choice(name: str, value: object, known: tuple[str | None, ...]) -> None:
    if value not in known:
        names = ", ".join(each for each in known if each is not None)
        raise KontextError(f"{name} {value!r} is not known: choose from {names}")


def check_type(name: str, value: object, *types: type) -> None:
    """Raises KontextError if a number that may be None is something else, such as "8GB"."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
        kind = "a number" if float in types else "a whole number"
        raise KontextError(f"{name} must be {kind}, not {value!r}")


def check_device(device: str, backend: str, devices: tuple[str, ...]) -> None:
    if device not in DEVICES:
        raise KontextError(f"device {device!r} is not known: choose from {', '.join(DEVICES)}")
    if device not in devices:
        names = " or ".join(each for each in devices if each != "auto")
        raise KontextError(f"the {backend} backend runs on {names}, not on {device!r}")


def check_links(backend: str, bundle: Bundle) -> None:
    """Raises KontextError for a bundle that takes weights from elsewhere."""
    if bundle.links:
        way = "" if Formats.of(bundle).missing(CPU) else "use --backend onnxruntime, or "
        raise KontextError(
            f"{bundle.folder} was exported with --link-weights, which the {backend} backend does not read: {way}"
            "export it again without --link-weights"
        )
