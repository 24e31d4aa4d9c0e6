"""ONNX Runtime's plug-in providers: separate libraries that it loads at run time, each with devices of its own.

`--device nv-rtx` and the like name a provider whose wheel says where its library is; `--provider LIBRARY` names any
other. https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import KontextError
from .onnxruntime_library import first_line, load_onnxruntime

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Wheel:
    """A published plug-in provider: its module, which has `get_library_path`, and its distribution."""

    title: str
    module: str
    package: str
    note: str = ""
    """How to get it, where `pip install PACKAGE` does not do."""


WHEELS = {
    "nv-rtx": Wheel(
        "TensorRT for RTX", "onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13"
    ),
    "webgpu": Wheel("WebGPU", "onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu"),
    "migraphx": Wheel(
        "MIGraphX (AMD)",
        "onnxruntime_ep_migraphx",
        "onnxruntime-ep-migraphx",
        note="PyPI's onnxruntime-ep-migraphx 0.0.0 is empty; AMD has it for ROCm",
    ),
}
"""Device → its wheel."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in provider to load.

    Args:
        library: a path, or the Python module of a wheel that has `get_library_path` or `library_path`.
        settings: the provider's own options.
    """

    library: str
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Plugin:
        """Of LIBRARY[:key=value,…]. Raises KontextError."""
        found = re.fullmatch(r"(.+?)(?::([\w.]+=[^,=]*(?:,[\w.]+=[^,=]*)*))?", text)
        if found is None or "=" in found[1] or not found[1].strip():
            raise KontextError(f"--provider takes LIBRARY[:key=value,…], not {text!r}")
        if found[2] is None and re.search(r"\w\w+:", text):  # one letter before it is a drive
            raise KontextError(
                f"--provider takes LIBRARY[:key=value,…]: no key=value is behind the colon of {text!r}"
            )
        pairs = [pair.partition("=") for pair in (found[2] or "").split(",") if pair]
        settings = {key: value for key, _, value in pairs}
        if len(settings) < len(pairs):
            raise KontextError(f"--provider names an option twice: {text!r}")
        return cls(found[1], settings)


def plugin_of(device: str, provider: str | None) -> Plugin | None:
    """The plug-in provider that a device of `WHEELS` or a `--provider` names; None for ONNX Runtime's own devices.

    Raises:
        KontextError: the device's wheel is not installed, or the provider is spelled wrongly.
    """
    if provider is not None:
        return Plugin.parse(provider)
    if device not in WHEELS:
        return None
    wheel = WHEELS[device]
    if not is_installed(device):
        raise KontextError(
            f"device {device!r} needs ONNX Runtime's plug-in for {wheel.title}, which is not installed: "
            + (wheel.note or f"pip install {wheel.package}")
        )
    return Plugin(wheel.module)


def is_installed(device: str) -> bool:
    """Whether the wheel of a device of `WHEELS` is."""
    return importlib.util.find_spec(WHEELS[device].module) is not None


def library_path(plugin: Plugin) -> str:
    """Where the plug-in's library is. Raises KontextError if it is nowhere."""
    if Path(plugin.library).is_file():
        return str(Path(plugin.library).absolute())
    if not re.fullmatch(r"\w+", plugin.library):
        module = plugin.library.replace("-", "_")
        hint = f"; the module of its wheel is {module}" if re.fullmatch(r"\w+", module) else ""
        what = "it is a folder" if Path(plugin.library).is_dir() else "there is no such library"
        raise KontextError(f"provider {plugin.library}: {what}{hint}")
    spec = importlib.util.find_spec(plugin.library)
    source = Path(spec.origin) if spec is not None and spec.origin is not None else None
    # Only a plug-in's module is imported: importing runs its code.
    if source is None or not source.is_file() or b"library_path" not in source.read_bytes():
        raise KontextError(
            f"provider {plugin.library}: it is neither a library nor a module of a plug-in's wheel"
        )
    try:
        wheel = importlib.import_module(plugin.library)
        return str((getattr(wheel, "get_library_path", None) or wheel.library_path)())
    except (ImportError, AttributeError, OSError) as error:
        raise KontextError(
            f"provider {plugin.library}: its module cannot be used: {first_line(error)}"
        ) from None


def devices_of(plugin: Plugin) -> list[Any]:
    """The devices (`OrtEpDevice`) that the plug-in lists; registers its library with ONNX Runtime, once.

    Raises:
        KontextError: ONNX Runtime cannot load it, or it lists none.
    """
    library, path = load_onnxruntime(), library_path(plugin)
    if not hasattr(library, "register_execution_provider_library"):
        raise KontextError(
            f"plug-in providers need ONNX Runtime 1.23 or newer, this is {library.__version__}"
        )
    if path not in REGISTERED:
        before = {each.ep_name for each in library.get_ep_devices()}
        try:
            library.register_execution_provider_library(Path(path).stem, path)
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise KontextError(
                f"provider {plugin.library}: ONNX Runtime {library.__version__} cannot load it: {first_line(error)}"
            ) from None
        REGISTERED[path] = [each for each in library.get_ep_devices() if each.ep_name not in before]
    if not REGISTERED[path]:
        raise KontextError(
            f"provider {plugin.library}: it finds no device here that it runs on; check its driver, or use --device cpu"
        )
    return REGISTERED[path]


REGISTERED: dict[str, list[Any]] = {}
"""Library → its devices; ONNX Runtime registers a library once in a process."""


def add_plugin(options: onnxruntime.SessionOptions, plugin: Plugin) -> str:
    """Makes sessions run on the first device of a plug-in; returns the provider's name."""
    device = devices_of(plugin)[0]
    options.add_provider_for_devices([device], plugin.settings)
    return str(device.ep_name)


def describe_devices(devices: Sequence[Any]) -> list[str]:
    """A line for each device: provider, kind, vendor, and what the provider says of it."""
    lines = []
    for each in devices:
        about = ", ".join(
            f"{key} {value}" for key, value in {**each.device.metadata, **each.ep_metadata}.items()
        )
        kind = str(each.device.type).rpartition(".")[2]
        lines.append(
            f"{each.ep_name}: {kind}, {each.device.vendor or each.ep_vendor}"
            + (f" ({about})" if about else "")
        )
    return lines
