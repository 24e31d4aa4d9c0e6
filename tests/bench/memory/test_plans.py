"""The plans' table from JSON, and their plot."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest

pytest.importorskip("torch")

from kontext.bench import cli
from kontext.bench.memory import plans


def test_table_and_plot_from_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plans.json"
    assert cli.main(["plans", "--json", str(file)]) == 0
    assert "FLUX.1-Kontext-dev in 12.00 GB on sm_89" in capsys.readouterr().out
    result = json.loads(file.read_text())
    (table,) = plans.tables(result)
    assert [row[0] for row in table.rows] == ["8 GB", "12 GB", "16 GB", "24 GB", "32 GB"]
    assert [row[-1] for row in table.rows][-1] == "nothing lost"
    for row, plan in zip(table.rows, result["plans"], strict=True):
        peaks = [float(cell) for cell in row[1:7]]
        assert max(peaks) == pytest.approx(plan["peak"] / 1e9, abs=0.005)
        assert max(peaks) <= plan["budget"] / 1e9
        for stage in plan["stages"].values():
            assert sum(stage[key] for key in plans.KEYS.values()) == stage["peak"]
    assert "an edit at 1024x1024 with one reference" in plans.footer(result)
    pytest.importorskip("matplotlib")
    plans.draw_plans(result, tmp_path / "plans.png")
    with PIL.Image.open(tmp_path / "plans.png") as picture:
        assert picture.width > 1000


def test_a_card_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plans", "--gpu", "voodoo"]) == 2
    assert "unknown GPU 'voodoo'" in capsys.readouterr().err
