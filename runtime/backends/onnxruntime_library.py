"""Imports ONNX Runtime, or says in one line what is wrong with its installation and what to type.

Several wheels install the same module: `onnxruntime` runs on CPUs, `onnxruntime-gpu` also on NVIDIA GPUs. With two of
them the last one installed wins, and uninstalling either removes files of the other.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from ...errors import KontextError
from ...installation import install_command

MODULE = "onnxruntime"
CUDA = "CUDAExecutionProvider"
GPU_WHEEL = "onnxruntime-gpu"

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Read when ONNX Runtime is loaded: 1.32 would write an identifier under the user's home, and send what it runs."""


def load_onnxruntime() -> ModuleType:
    """The module `onnxruntime`, without its telemetry unless the environment variable ORT_DISABLE_TELEMETRY is set.

    Raises:
        KontextError: it is not installed, or its files are not complete.
    """
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name == MODULE:
            raise KontextError(
                f"ONNX Runtime is not installed: {install_command('cpu')}, or, for an NVIDIA GPU, "
                f"{install_command('gpu')}"
            ) from None
        raise KontextError(broken(str(error))) from None
    except ImportError as error:
        raise KontextError(broken(str(error))) from None
    if not hasattr(onnxruntime, "InferenceSession"):  # an empty folder can be imported too
        raise KontextError(broken("files are missing"))
    return onnxruntime


def first_line(error: Exception) -> str:
    """The first line of ONNX Runtime's message, which says what happened; many follow."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def broken(reason: str) -> str:
    extra = "gpu" if GPU_WHEEL in wheels() else "cpu"
    return (
        f"ONNX Runtime is installed but cannot be loaded ({reason.splitlines()[0]}): {replace_command(extra)}"
    )


def check_provider(
    device: str, provider: str, available: Sequence[str], instead: str = "use --device cpu"
) -> None:
    """Raises KontextError if ONNX Runtime lacks the execution provider of a device that the user asked for; `instead`
    is what else would work."""
    if provider not in available:
        installed = " and ".join(wheels()) or MODULE
        raise KontextError(
            f"device {device!r} needs ONNX Runtime's {provider}, which the installed {installed} does not have "
            f"(it has {', '.join(available)}): {replace_command('gpu')}; or {instead}"
        )


@cache
def warn_of_hidden_gpu() -> None:
    """Warns, once, if the wheel for CPUs was installed over the one for GPUs."""
    names = wheels()
    if GPU_WHEEL in names and len(names) > 1:
        warnings.warn(
            f"{' and '.join(names)} are both installed, which leaves ONNX Runtime without its {CUDA}; to use an "
            f"NVIDIA GPU: {replace_command('gpu')}",
            stacklevel=2,
        )


def replace_command(extra: str) -> str:
    """Removes every wheel of ONNX Runtime and installs one: pip leaves a wheel as it is if its version is there."""
    names = wheels()
    remove = f"pip uninstall -y {' '.join(names)} && " if names else ""
    return remove + install_command(extra)


def is_complete() -> bool:
    """Whether the module's compiled part is there, or the module is not at all."""
    spec = importlib.util.find_spec(MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return not folders or any(
        any(Path(folder).glob("capi/onnxruntime_pybind11_state*")) for folder in folders
    )


def wheels() -> list[str]:
    """The distributions that installed the module `onnxruntime`."""
    spec = importlib.util.find_spec(MODULE)
    found = set()
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for info in Path(folder).parent.glob(f"{MODULE}*.dist-info"):
            record = info / "RECORD"
            if record.is_file() and f"{MODULE}/__init__.py," in record.read_text(encoding="utf-8"):
                found.add(info.name.partition("-")[0].replace("_", "-"))
    return sorted(found)
