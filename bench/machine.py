"""The machine that a number was measured on: processor, memory, system, GPUs and library versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

LIBRARIES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "tokenizers",
    "safetensors",
    "pillow",
)


def describe_machine() -> dict[str, Any]:
    """The machine as JSON, without host name, user name or paths."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpu": gpus(),
        "libraries": {name: version for name in LIBRARIES if (version := installed_version(name))},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine on one line, for a table's footer."""
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    parts = [f"{machine['cpu']}, {cores}, {machine['memory_gib']:.0f} GiB", *machine["gpu"]]
    shown = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "diffusers")
    parts += [f"{name} {machine['libraries'][name]}" for name in shown if name in machine["libraries"]]
    return "; ".join([*parts, f"Python {machine['python']}"])


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU; empty if there is no nvidia-smi."""
    return nvidia_smi("name", "memory.total", "driver_version")


def nvidia_smi(*properties: str, units: bool = True) -> list[str]:
    """A line for each GPU with its properties, separated by commas; empty if there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    form = "--format=csv,noheader" if units else "--format=csv,noheader,nounits"
    query = ["nvidia-smi", f"--query-gpu={','.join(properties)}", form]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
