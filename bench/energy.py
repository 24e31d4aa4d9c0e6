"""Joules between two readings: a GPU's own counter (NVML), or a processor's (RAPL, as Linux shows it), where one can be
read. RAPL counts the whole package, other processes included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")

Counter = Callable[[], float]
"""Joules since some moment, before `wraps_at`."""


@dataclass(frozen=True)
class EnergyMeter:
    """`source` names what is read, None where nothing can be."""

    source: str | None = None
    counters: Sequence[Counter] = ()
    wraps_at: Sequence[float] = ()
    """Joules at which each counter starts at 0 again."""

    @classmethod
    def open(cls, device: str) -> EnergyMeter:
        """The counter of the first GPU for any device but "cpu", of all of the processor's packages for that."""
        return rapl(POWERCAP) if device == "cpu" else nvml()

    def read(self) -> list[float]:
        return [counter() for counter in self.counters]

    def since(self, before: Sequence[float]) -> float | None:
        """Joules since `before` was read; None without a counter."""
        if not self.counters:
            return None
        triples = zip(before, self.read(), self.wraps_at, strict=True)
        return sum(now - then if now >= then else now - then + whole for then, now, whole in triples)


def rapl(root: Path) -> EnergyMeter:
    """The packages' counters below `root`; none where they are missing, or readable by root alone."""
    counters: list[Counter] = []
    wraps_at = []
    for zone in sorted(root.glob("intel-rapl:*")):  # AMD's have the same name
        if zone.name.count(":") != 1:
            continue  # a part of a package
        try:
            microjoules(zone / "energy_uj")
            wraps_at.append(microjoules(zone / "max_energy_range_uj"))
        except (OSError, ValueError):
            return EnergyMeter()
        counters.append(lambda file=zone / "energy_uj": microjoules(file))  # type: ignore[misc]
    return EnergyMeter("RAPL", counters, wraps_at) if counters else EnergyMeter()


def microjoules(file: Path) -> float:
    return int(file.read_text(encoding="ascii")) / 1e6


def nvml() -> EnergyMeter:
    """The first GPU's total energy; none without a driver, or for a GPU older than Volta, which does not count it."""
    try:
        import pynvml
    except ImportError:
        return EnergyMeter()
    library: Any = pynvml
    try:
        library.nvmlInit()
        gpu = library.nvmlDeviceGetHandleByIndex(0)
        library.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except library.NVMLError:
        return EnergyMeter()
    return EnergyMeter(
        "NVML", [lambda: library.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3], [float("inf")]
    )
