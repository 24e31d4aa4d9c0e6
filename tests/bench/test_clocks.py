"""Clocks from a made-up /sys, /proc and nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.bench import clocks


def test_clocks_of_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, mhz in enumerate((1200, 3400)):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("performance\n")
        (folder / "scaling_cur_freq").write_text(f"{mhz}000\n")
        (folder / "cpuinfo_max_freq").write_text("3700000\n")
    monkeypatch.setattr(clocks, "CPUS", tmp_path)
    assert clocks.cpu_clocks() == {"governor": "performance", "mhz": 2300.0, "max_mhz": 3700.0}


def test_clocks_of_a_virtual_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("cpu MHz\t\t: 2445.4\nflags: x\ncpu MHz\t\t: 2445.6\n")
    monkeypatch.setattr(clocks, "CPUS", tmp_path)
    monkeypatch.setattr(clocks, "CPU_INFO", info)
    assert clocks.cpu_clocks() == {"governor": None, "mhz": 2445.5, "max_mhz": None}
    info.unlink()
    assert clocks.cpu_clocks() == {"governor": None, "mhz": None, "max_mhz": None}


def test_clocks_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a real process, as nvidia-smi answers."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 210, 1980, [N/A], 2619\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert clocks.gpu_clocks() == [
        {"mhz": 210.0, "max_mhz": 1980.0, "memory_mhz": None, "max_memory_mhz": 2619.0}
    ]
    program.write_text("#!/bin/sh\nexit 1\n")
    assert clocks.gpu_clocks() == []
