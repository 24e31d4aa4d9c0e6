"""The cost of exporting: every format is measured, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.bench import exporting
from kontext.bench.process_cost import ProcessCost


def test_export_is_measured_for_each_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pretend(words: list[str]) -> ProcessCost:
        folder = Path(words[-1])
        folder.mkdir()
        (folder / "manifest.json").write_bytes(bytes(100))
        return ProcessCost(seconds=float(len(words)), peak_bytes=2**20)

    monkeypatch.setattr(exporting, "run_process", pretend)
    result = exporting.measure_exports(tmp_path, ["fp32", "fp8"], repeat=2)
    assert list(result["formats"]) == ["fp32", "fp8"]
    assert result["formats"]["fp8"]["bundle_bytes"] == 100
    assert result["formats"]["fp8"]["seconds"]["count"] == 2


def test_export_table() -> None:
    cost = {"seconds": {"median": 12.34}, "peak_bytes": {"median": 900 * 2**20}, "bundle_bytes": 2**22}
    (table,) = exporting.tables({"formats": {"fp8": cost}})
    assert table.rows == [["fp8", "12.3", "900", "4.0"]]
