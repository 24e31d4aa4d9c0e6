"""Wall time and peak memory of a process, and how this package's commands are started."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from kontext.bench.process_cost import export_command, own_command, run_process, thinned, with_cache
from kontext.child_process import module_command
from kontext.errors import KontextError


def test_peak_memory_is_the_childs_not_ours() -> None:
    ours = np.ones(200 * 2**20, np.uint8)  # what this process holds must not count as the child's
    small = run_process([sys.executable, "-S", "-c", "pass"])
    large = run_process([sys.executable, "-S", "-c", "x = bytearray(b'1') * (100 * 2**20)"])
    assert small.peak_bytes < 60 * 2**20 < 90 * 2**20 < large.peak_bytes < 180 * 2**20
    assert small.seconds > 0
    assert ours.all()


def test_a_process_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(KontextError, match="ended with code 3: no such bundle"):
        run_process([sys.executable, "-c", "print('no such bundle'); raise SystemExit(3)"])


def test_memory_over_time() -> None:
    """100 MiB appear while the process runs, and not at its start."""
    code = "import time; time.sleep(.2); x = bytearray(b'1') * (100 * 2**20); time.sleep(.2)"
    cost = run_process([sys.executable, "-S", "-c", code], sample_seconds=0.01)
    seconds, sizes = zip(*cost.memory, strict=True)
    assert list(seconds) == sorted(seconds)
    assert seconds[-1] <= cost.seconds
    assert min(sizes[:3]) + 90 * 2**20 < max(sizes) <= cost.peak_bytes + 2**20
    assert run_process([sys.executable, "-S", "-c", "pass"]).memory == []


def test_many_samples_become_fewer() -> None:
    samples = [(n / 100, 5 if n == 700 else 1) for n in range(1000)]
    found = thinned(samples)
    assert len(found) == 200
    assert (7.0, 5) in found


def test_environment_reaches_the_process() -> None:
    code = "import os; raise SystemExit(os.environ['ASKED'] != 'yes')"
    run_process([sys.executable, "-c", code], environment={"ASKED": "yes"})


def test_a_command_is_its_script_or_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert own_command("kontext-edit", "kontext.runtime.cli") == module_command("kontext.runtime.cli")
    (tmp_path / "kontext-export").touch()
    assert export_command() == [str(tmp_path / "kontext-export")]


def test_a_cache_of_its_own(tmp_path: Path) -> None:
    code = f"import os; raise SystemExit(os.environ['XDG_CACHE_HOME'] != {str(tmp_path)!r})"
    run_process(with_cache(tmp_path, [sys.executable, "-c", code]))
