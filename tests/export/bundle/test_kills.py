"""Killed while publishing, and two exports at once: the short form of tests/torture/test_publish.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from .kills import reason_not_to
from .pairs import race_exports
from .publishing import scenarios, small_exports

NAMES = [each.name for each in scenarios(Path())]

LAST, EACH = 24, 8
"""Of the changing calls before the end, the renames and what follows them, one in so many is tried."""


@pytest.mark.parametrize("name", NAMES)
def test_killed_while_publishing(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """Oracles: digests of every file of OUT, a listing of the folder around it, and that the next run succeeds."""
    if reason := reason_not_to():
        pytest.skip(reason)
    scenario = next(each for each in scenarios(tiny_bundle) if each.name == name)
    with small_exports():
        calls = [call for call in scenario.calls(tmp_path / "start") if call.changes]
        for index, call in enumerate(calls[-LAST::EACH]):
            scenario.kill(call, tmp_path / f"{index}")


@pytest.mark.parametrize("force", [False, True], ids=["new", "forced"])
def test_two_exports_at_once(tmp_path: Path, force: bool) -> None:
    with small_exports():
        for seed in range(10):
            race_exports(tmp_path / f"{seed}", seed, force)
