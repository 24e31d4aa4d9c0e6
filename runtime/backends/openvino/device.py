"""Which of OpenVINO's devices runs a bundle, and what its networks compute in there. Needs no OpenVINO itself."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from ....errors import KontextError
from ....installation import install_command

PLUGINS = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
"""What follows "openvino:" in a device → OpenVINO's name of it."""

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""What a network computes in → OpenVINO's name of it, which its capabilities list in capitals ("BF16")."""

CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
"""What a network computes in → its name in OPTIMIZATION_CAPABILITIES."""

KEEPS_FP32 = {"bf16": ("modulation",), "fp16": ("modulation", "text_encoder_2")}
"""Networks that compute in fp32 though the others compute in less. The sine of 1000 times the timestep needs fp32, and
OpenVINO's hint is for a whole graph: 30 dB of the modulations in bf16, 128 in fp32. T5 leaves the range of fp16. Both
run once an edit."""

TELEMETRY = "openvino_telemetry"
"""Writes an identifier under the user's home, sends each import of OpenVINO, and fails for a user without a home. Its
only switch is a file in the home; without the module OpenVINO takes a stub of its own."""

BF16_UNITS = ("amx_bf16", "avx512_bf16")
"""Flags in /proc/cpuinfo."""


def is_installed() -> bool:
    """Whether OpenVINO can be imported; does not import it."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bf16 matrices faster than fp32 ones (AMX or AVX512-BF16)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # Linux only
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return any(flag in flags for flag in BF16_UNITS)


def load_openvino() -> None:
    """Imports OpenVINO, without its telemetry. Raises KontextError if it is not installed or cannot be loaded."""
    try:
        with hidden_module(TELEMETRY):
            import openvino
    except ModuleNotFoundError as error:
        if error.name == "openvino":
            raise KontextError(f"OpenVINO is not installed: {install_command('openvino')}") from None
        raise KontextError(f"OpenVINO cannot be loaded: {error}") from None
    except ImportError as error:
        raise KontextError(f"OpenVINO cannot be loaded: {str(error).splitlines()[0]}") from None
    if not hasattr(openvino, "Core"):  # an empty folder can be imported too
        raise KontextError(
            f"OpenVINO's files are not complete: {install_command('openvino')} --force-reinstall"
        )


@contextlib.contextmanager
def hidden_module(name: str) -> Iterator[None]:
    """A context in which importing a module fails as if it were not installed."""
    absent = object()
    before = sys.modules.get(name, absent)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not absent:
            sys.modules[name] = before  # type: ignore[assignment]


def choose_device(device: str, available: Collection[str]) -> str:
    """OpenVINO's name of a device of `OpenVINOOptions.devices`.

    Args:
        device: such as "openvino:gpu"; without a part behind the colon it is the CPU.
        available: OpenVINO's devices here, such as CPU and GPU.0.

    Raises:
        KontextError: it is not one of them.
    """
    name = PLUGINS[device.partition(":")[2] or "cpu"]
    if not any(each.partition(".")[0] == name for each in available):
        raise KontextError(
            f"device {device!r}: OpenVINO finds no {name} here (it has {', '.join(available)}): install the {name}'s "
            "driver, or use --device openvino:cpu"
        )
    return name


def choose_compute(
    graph: str, asked: str | None, exported: str, device: str, capabilities: Collection[str]
) -> str:
    """What a graph computes in on a device: "fp32", "bf16" or "fp16".

    Args:
        graph: one of `bundle.GRAPHS`.
        asked: what the user wants for all networks; None: what the bundle says, where the device has units for it, and
            fp32 elsewhere. A CPU does not count as having them for fp16, which no CPU computed in when this was tested.
        exported: what the bundle says of the graph.
        device: OpenVINO's name of it.
        capabilities: the device's OPTIMIZATION_CAPABILITIES.

    Raises:
        KontextError: the device has no units for what is asked.
    """
    if asked not in (None, "fp32") and CAPABILITIES[asked] not in capabilities:
        names = ", ".join(each for each, name in CAPABILITIES.items() if name in capabilities)
        raise KontextError(f"this {device} does not compute in {asked} in OpenVINO: choose from {names}")
    wanted = exported if asked is None else asked
    if asked is None and (CAPABILITIES[wanted] not in capabilities or (wanted, device) == ("fp16", "CPU")):
        return "fp32"
    return "fp32" if graph in KEEPS_FP32.get(wanted, ()) else wanted
