"""The fastest way to run a bundle on this machine: which backend, on which device, and why not a faster one.

`Pipeline.load` takes the first of `WAYS` that works if neither a device nor a backend is named, and `kontext-edit
devices` shows them all. No library is loaded to find out, so an edit starts as fast as if it had been named.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...compute_capability import engine_target, sm_name
from ...errors import KontextError
from ...installation import install_command
from ..bundle import Bundle
from ..cuda_driver import Gpu, find_gpu
from ..engines import LIBRARIES, choose_engines
from ..units import gigabytes
from .onnxruntime_library import CUDA, GPU_WHEEL, is_complete, replace_command, wheels
from .openvino.device import has_bf16_units
from .options import BackendOptions, OnnxRuntimeOptions, OpenVINOOptions, TensorRTOptions, TorchOptions
from .plugins import WHEELS, Plugin, devices_of, is_installed
from .runnable import Formats

BF16_CAPABILITY = 80
"""Lowest compute capability, times ten, of GPUs that compute in bf16; Triton's kernels are written for it too."""


NO_GPU = "there is no NVIDIA GPU with a working driver"
LINKED = "the bundle was exported with --link-weights"


@dataclass(frozen=True)
class Machine:
    """What there is to run a bundle on."""

    gpu: Gpu | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    """Distribution → version, of those in `PACKAGES` that are installed."""
    torch_cuda: bool = False
    """Whether PyTorch is a build with CUDA."""
    triton: bool = False
    onnxruntime_complete: bool = True
    """Whether ONNX Runtime's files are all there: uninstalling one of two wheels removes files of the other."""
    bf16_units: bool = False
    """Whether the CPU multiplies bf16 matrices faster than fp32 ones."""

    @classmethod
    def here(cls) -> Machine:
        packages = {}
        for name in (*PACKAGES, *wheels()):
            with suppress(PackageNotFoundError):
                packages[name] = version(name)
        triton = importlib.util.find_spec("triton") is not None
        return cls(
            find_gpu(),
            packages,
            torch_has_cuda(),
            triton,
            onnxruntime_complete=is_complete(),
            bf16_units=has_bf16_units(),
        )


PACKAGES = ("openvino", "torch", *(library.package for library in LIBRARIES.values()))


@dataclass(frozen=True)
class Way:
    """One way to run a bundle.

    Args:
        title: in words.
        options, device: for `Pipeline.load`.
        refusal: why it does not work here, "" if it does.
        remedy: what would make it work: a command; "" if nothing would.
    """

    title: str
    options: BackendOptions
    device: str
    refusal: str = ""
    remedy: str = ""


def torch_has_cuda() -> bool:
    """Whether the installed PyTorch is a build with CUDA, by its version file: importing it takes a second."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    file = Path(found.origin).with_name("version.py")
    return file.is_file() and bool(re.search(r"^cuda\b.*= *['\"]", file.read_text(encoding="utf-8"), re.M))


def needed_memory(bundle: Bundle, machine: Machine) -> str:
    """What an edit takes on the GPU, in words: by the planner where PyTorch is installed, else the weights alone."""
    assert machine.gpu is not None
    if "torch" not in machine.packages:
        return f"at least {gigabytes(largest_network(bundle))}, the largest network's weights"
    from .torch.peaks import predict_peaks

    peaks = predict_peaks(bundle)
    return f"about {gigabytes(peaks.whole)} an edit, {gigabytes(peaks.offloaded)} with --offload (planned)"


def engines(library: str, bundle: Bundle, machine: Machine) -> Way:
    """The bundle's engines, compiled by TensorRT for RTX or TensorRT."""
    entry = LIBRARIES[library]
    title, options = f"{entry.title} engines", TensorRTOptions()
    if machine.gpu is None:
        return Way(title, options, library, NO_GPU)
    target = engine_target(machine.gpu.capability)
    if entry.package not in machine.packages:
        remedy = install_command(entry.extra) if bundle_has_engines(bundle, library, target) else ""
        return Way(title, options, library, f"{entry.title} is not installed", remedy)
    try:
        choose_engines(bundle, library, machine.packages[entry.package], target)
    except KontextError as error:
        message, _, command = str(error).partition(": kontext-export ")
        return Way(title, options, library, message, command and f"kontext-export {command}")
    return Way(title, options, library)


def bundle_has_engines(bundle: Bundle, library: str, target: str) -> bool:
    listed = bundle.manifest.get("engines", [])
    return any(
        isinstance(entry, Mapping) and (entry.get("library"), entry.get("target")) == (library, target)
        for entry in (listed if isinstance(listed, list) else [])
    )


def torch_on_gpu(bundle: Bundle, machine: Machine) -> Way:
    title, options = "PyTorch with Triton kernels", TorchOptions()
    if machine.gpu is None:
        return Way(title, options, "cuda", NO_GPU)
    architecture = sm_name(machine.gpu.capability)
    if machine.gpu.capability < BF16_CAPABILITY:
        return Way(title, options, "cuda", f"its kernels need sm_80, this GPU is {architecture}")
    if bundle.links:
        return Way(title, options, "cuda", LINKED)
    if not machine.torch_cuda:
        build = (
            "PyTorch is a build without CUDA" if "torch" in machine.packages else "PyTorch is not installed"
        )
        return Way(title, options, "cuda", build, install_command("torch"))
    kernels = {name for name in bundle.files if name.startswith(f"kernels/{architecture}/")}
    if not machine.triton and (not kernels or kernels & set(bundle.damaged)):
        return Way(title, options, "cuda", "Triton is not installed", install_command("kernels"))
    return Way(title, options, "cuda")


def fit_torch(way: Way, bundle: Bundle, gpu: Gpu) -> Way:
    """The same with `offload` on a GPU that an edit does not fit otherwise; refused if it does not fit at all."""
    from .torch.peaks import predict_peaks  # imports PyTorch, which is about to run anyway

    peaks = predict_peaks(bundle)
    if peaks.whole <= gpu.memory:
        return way
    if peaks.offloaded <= gpu.memory:
        return replace(way, title=f"{way.title}, weights in host memory", options=TorchOptions(offload=True))
    return replace(
        way, refusal=f"an edit takes about {gigabytes(peaks.offloaded)} of its {gigabytes(gpu.memory)}"
    )


def largest_network(bundle: Bundle) -> int:
    """Bytes of the largest network's weights: without offloading they are on the GPU at once."""
    return max(entry.weights.stat().st_size for entry in bundle.graphs.values())


def onnxruntime_on_gpu(bundle: Bundle, machine: Machine) -> Way:
    title, options = "ONNX Runtime's CUDA provider", OnnxRuntimeOptions()
    formats = Formats.of(bundle)
    if machine.gpu is None:
        return Way(title, options, "cuda", NO_GPU)
    if missing := formats.missing("cuda"):
        return Way(title, options, "cuda", missing)
    if "bf16" in formats.computes and machine.gpu.capability < BF16_CAPABILITY:
        architecture = sm_name(machine.gpu.capability)
        return Way(title, options, "cuda", f"the bundle computes in bf16, which {architecture} does not")
    if GPU_WHEEL not in machine.packages or len(set(machine.packages) & {GPU_WHEEL, "onnxruntime"}) > 1:
        return Way(title, options, "cuda", f"this ONNX Runtime has no {CUDA}", install_command("gpu"))
    if (needed := largest_network(bundle)) > machine.gpu.memory:
        memory = gigabytes(machine.gpu.memory)
        return Way(title, options, "cuda", f"its largest network takes {gigabytes(needed)} of {memory}")
    return Way(title, options, "cuda")


def plugin(device: str, bundle: Bundle, _machine: Machine) -> Way:
    """ONNX Runtime with the plug-in provider of a device of `plugins.WHEELS`."""
    way = Way(f"ONNX Runtime's plug-in for {WHEELS[device].title}", OnnxRuntimeOptions(), device)
    if not is_installed(device):
        return replace(way, refusal="it is not installed")
    if missing := Formats.of(bundle).missing(device):
        return replace(way, refusal=missing)
    try:
        devices_of(Plugin(WHEELS[device].module))
    except KontextError as error:
        return replace(way, refusal=str(error))
    return way


def openvino_on_cpu(first: bool, bundle: Bundle, machine: Machine) -> Way | None:
    """Before ONNX Runtime's CPU where it is the faster of the two (`first`), else after it. None in the other place.

    It is faster in bf16, where the processor has units for it. A bundle in plain fp32 was exported for exactness, and
    products with inputs rounded to INT8 at run time are fused by ONNX Runtime alone: both stay there.
    """
    formats = Formats.of(bundle)
    faster = machine.bf16_units and bool(formats.weights - {"fp32"}) and "int8" not in formats.inputs
    if first != faster:
        return None
    narrow = faster and formats.computes == {"fp32"}
    options = OpenVINOOptions(compute="bf16" if narrow else None)
    way = Way("OpenVINO in bf16" if narrow else "OpenVINO", options, "openvino")
    if bundle.links:
        return replace(way, refusal=LINKED)
    if missing := formats.missing_in_openvino:
        return replace(way, refusal=missing)
    if "openvino" not in machine.packages:
        return replace(way, refusal="OpenVINO is not installed", remedy=install_command("openvino"))
    return way


def onnxruntime_on_cpu(bundle: Bundle, machine: Machine) -> Way:
    title, options = "ONNX Runtime on the CPU", OnnxRuntimeOptions()
    if not {"onnxruntime", GPU_WHEEL} & set(machine.packages):
        return Way(title, options, "cpu", "ONNX Runtime is not installed", install_command("cpu"))
    if not machine.onnxruntime_complete:
        extra = "gpu" if GPU_WHEEL in machine.packages else "cpu"
        return Way(title, options, "cpu", BROKEN, replace_command(extra))
    return Way(title, options, "cpu", Formats.of(bundle).missing("cpu"))


def torch_on_cpu(bundle: Bundle, machine: Machine) -> Way:
    title, options = "PyTorch on the CPU", TorchOptions()
    if "torch" not in machine.packages:
        return Way(title, options, "cpu", "PyTorch is not installed", install_command("torch"))
    return Way(title, options, "cpu", LINKED if bundle.links else "")


WAYS: tuple[Callable[[Bundle, Machine], Way | None], ...] = (
    partial(engines, "rtx"),
    partial(engines, "tensorrt"),
    torch_on_gpu,
    partial(plugin, "nv-rtx"),
    onnxruntime_on_gpu,
    partial(plugin, "migraphx"),
    partial(plugin, "webgpu"),
    partial(openvino_on_cpu, True),
    onnxruntime_on_cpu,
    partial(openvino_on_cpu, False),
    torch_on_cpu,
)
"""Ways to run a bundle, the fastest first."""


def ways(bundle: Bundle, machine: Machine) -> Iterator[Way]:
    """Every way to run `bundle`, the fastest first, whether it works on `machine` or not."""
    return filter(None, (way(bundle, machine) for way in WAYS))


FAILED = "it does not start"
"""The refusal of a way that was tried."""

BROKEN = "files of ONNX Runtime are missing"


@dataclass(frozen=True)
class Choice:
    """The fastest way that works, and the faster ones that a command would make work."""

    way: Way
    faster: tuple[Way, ...]

    def __str__(self) -> str:
        """One line for people."""
        hint = next((way for way in self.faster if way.remedy), None)
        text = f"running with {self.way.title}"
        return f"{text}; faster: {hint.title} ({hint.refusal}: {hint.remedy})" if hint else text


def choose(bundle: Bundle, machine: Machine | None = None, *, without: Collection[str] = ()) -> Choice:
    """The fastest way to run `bundle` here, but for those whose titles are in `without`.

    Raises:
        KontextError: none works; says why.
    """
    machine = Machine.here() if machine is None else machine
    faster: list[Way] = []
    for way in ways(bundle, machine):
        if way.title in without:
            way = replace(way, refusal=FAILED)
        if not way.refusal and way.device == "cuda" and isinstance(way.options, TorchOptions):
            assert machine.gpu is not None
            way = fit_torch(way, bundle, machine.gpu)
        if not way.refusal:
            return Choice(way, tuple(faster))
        faster.append(way)
    raise KontextError(
        f"nothing that is installed here runs {bundle.folder} (kontext-edit devices {bundle.folder} says why): "
        + remedy(bundle, faster)
    )


def remedy(bundle: Bundle, refused: Collection[Way]) -> str:
    """What would make a bundle run that nothing here runs, where each of `refused` was tried."""
    known = [way for way in refused if way.remedy and "--engine" not in way.remedy]
    if not known:
        return Formats.of(bundle).instead()
    way = next((way for way in known if way.refusal == BROKEN), known[0])
    return f"{way.refusal}: {way.remedy}"
