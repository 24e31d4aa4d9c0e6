"""Publishing of bundles, additions and model repositories: killed at every system call, and pairs started together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from ..export.bundle.kills import reason_not_to
from ..export.bundle.pairs import race_exports
from ..export.bundle.publishing import scenarios, small_exports

NAMES = [each.name for each in scenarios(Path())]
PAIRS = 100
"""Of each kind."""


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_system_call(
    name: str, tiny_bundle: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if reason := reason_not_to():
        pytest.skip(reason)
    scenario = next(each for each in scenarios(tiny_bundle) if each.name == name)
    with small_exports():
        calls = scenario.calls(tmp_path / "start")
        kills = sum(scenario.kill(call, tmp_path / f"{index}") for index, call in enumerate(calls))
    record_property("system calls", len(calls))
    print(
        f"\n{name}: {len(calls)} system calls, {sum(call.changes for call in calls)} of them change something; "
        f"{kills} kills"
    )
    assert kills > 0.9 * len(calls)  # a few calls, as for memory, are not made every time


@pytest.mark.parametrize("force", [False, True], ids=["new", "forced"])
def test_two_exports_at_once(tmp_path: Path, force: bool) -> None:
    codes: Counter[tuple[int, ...]] = Counter()
    with small_exports():
        for seed in range(PAIRS):
            codes[tuple(race_exports(tmp_path / f"{seed}", seed, force))] += 1
    print(f"\n{PAIRS} pairs: exit codes {dict(codes)}")
