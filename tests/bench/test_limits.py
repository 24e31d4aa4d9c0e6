"""What a processor gives: rates follow the fastest run. (The work of a step is held against PyTorch's counter in
tests/bench/fullsize/test_edit.py and tests/bench/fidelity/test_approximations.py.)"""

from __future__ import annotations

import pytest

from kontext.bench import limits


def test_rates_are_of_the_fastest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 10.5, 20.0, 21.0])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(clock))
    assert limits.fastest(lambda: None, 3) == 0.5


def test_a_copy_counts_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COPIED_BYTES", 1024)
    monkeypatch.setattr(limits, "fastest", lambda call, _repeats: call() or 0.5)
    assert limits.copy_bandwidth() == 4096
