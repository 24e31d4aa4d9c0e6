"""Energy: Linux's powercap files with known counters, and NVIDIA's own Python bindings on a stub of their library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kontext.bench.energy import EnergyMeter, rapl

STUB = """
typedef unsigned long long u64;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = (void *)1; return index ? 2 : 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, u64 *mj) { static u64 now; *mj = now += 1500; return 0; }
const char *nvmlErrorString(int code) { return "stub"; }
"""
PROGRAM = """
from kontext.bench.energy import EnergyMeter
meter = EnergyMeter.open("cuda")
before = meter.read()
print(meter.source, meter.since(before))
"""


def zone(root: Path, name: str, now: int, limit: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{now}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_wrap(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", 1_000_000, 262_143_328_850)
    second = zone(tmp_path, "intel-rapl:1", 90_000_000, 100_000_000)
    zone(tmp_path, "intel-rapl:0:0", 5, 10)  # the cores, which the package counts too
    meter = rapl(tmp_path)
    before = meter.read()
    first.write_text("3500000\n")
    second.write_text("5000000\n")
    assert meter.source == "RAPL"
    assert meter.since(before) == pytest.approx(2.5 + 15)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    assert rapl(tmp_path) == EnergyMeter()
    assert EnergyMeter().since([]) is None
    zone(tmp_path, "intel-rapl:0", 1, 2).write_text("secret\n")
    assert rapl(tmp_path).source is None


def test_nvidia_bindings_on_a_stub(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(STUB)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["NVML", "1.5"]
