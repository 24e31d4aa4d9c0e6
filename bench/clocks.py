"""Clocks of the processor and of NVIDIA GPUs, which decide what a time means: a governor, and MHz now and at most."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .machine import nvidia_smi

CPUS = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")

GPU_CLOCKS = {
    "mhz": "clocks.sm",
    "max_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "max_memory_mhz": "clocks.max.mem",
}
"""Entry → nvidia-smi's name."""


def describe_clocks() -> dict[str, Any]:
    """The clocks as they are now, as JSON; None for what the system does not say, as in most virtual machines."""
    return {"cpu": cpu_clocks(), "gpu": gpu_clocks()}


def cpu_clocks() -> dict[str, Any]:
    """The governors, the mean clock of all processors, and the highest that one of them can have."""
    governors = sorted(set(readings("scaling_governor")))
    now = [float(each) / 1000 for each in readings("scaling_cur_freq")] or list(cpu_info_mhz())
    most = [float(each) / 1000 for each in readings("cpuinfo_max_freq")]
    return {
        "governor": ", ".join(governors) or None,
        "mhz": round(sum(now) / len(now), 1) if now else None,
        "max_mhz": round(max(most), 1) if most else None,
    }


def readings(name: str) -> list[str]:
    """What each processor's folder has in the file `name`."""
    found = []
    for path in sorted(CPUS.glob(f"cpu[0-9]*/cpufreq/{name}")):
        try:
            found.append(path.read_text().strip())
        except OSError:
            continue
    return found


def cpu_info_mhz() -> Iterable[float]:
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return []
    return [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]


def gpu_clocks() -> list[dict[str, float | None]]:
    """MHz of each NVIDIA GPU."""
    return [
        dict(zip(GPU_CLOCKS, map(megahertz, line.split(",")), strict=False))
        for line in nvidia_smi(*GPU_CLOCKS.values(), units=False)
    ]


def megahertz(text: str) -> float | None:
    """None for "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return None
