"""The cost of exporting: every format is measured, cold and warm, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.bench import exporting
from kontext.bench.process_cost import ProcessCost
from kontext.export.cli.source_flags import EMBEDDED


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The exports that were run."""
    run: list[list[str]] = []

    def pretend(words: list[str]) -> ProcessCost:
        run.append(words)
        folder = Path(words[-1])
        folder.mkdir()
        (folder / "manifest.json").write_bytes(bytes(100))
        return ProcessCost(seconds=float(len(words)), peak_bytes=2**20)

    monkeypatch.setattr(exporting, "run_process", pretend)
    return run


def test_export_is_measured_for_each_format(commands: list[list[str]], tmp_path: Path) -> None:
    result = exporting.measure_exports(tmp_path, ["fp32", "fp8"], repeat=2)
    assert list(result["formats"]) == ["fp32", "fp8"]
    assert result["formats"]["fp8"]["bundle_bytes"] == 100
    for state in ("cold", "warm"):
        assert result["formats"]["fp8"][state]["seconds"]["count"] == 2
    caches = [next(word for word in words if word.startswith("XDG_CACHE_HOME=")) for words in commands]
    assert caches[::2] == caches[1::2]  # a warm export has the cache of the cold one before it
    assert len(set(caches)) == 4
    assert all(str(tmp_path) in words for words in commands)


def test_the_embedded_model_is_not_named(commands: list[list[str]]) -> None:
    """As a MODEL it would not be calibrated."""
    exporting.measure_exports(EMBEDDED, ["fp8"], repeat=1)
    assert len(commands) == 2
    assert all(str(EMBEDDED) not in words for words in commands)


def test_export_table() -> None:
    cold = {"seconds": {"median": 12.34}, "peak_bytes": {"median": 900 * 2**20}}
    warm = {"seconds": {"median": 5.67}, "peak_bytes": {"median": 800 * 2**20}}
    cost = {"cold": cold, "warm": warm, "bundle_bytes": 2**22}
    (table,) = exporting.tables({"formats": {"fp8": cost}})
    assert table.rows == [["fp8", "12.3", "5.7", "900", "800", "4.0"]]
