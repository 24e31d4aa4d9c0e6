"""The tables of recipes by card, from the result alone."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import json
from pathlib import Path

from kontext.bench import cli
from kontext.bench.memory import cards


def test_a_card_is_planned_for_both_executors(tmp_path: Path) -> None:
    file = tmp_path / "cards.json"
    assert cli.main(["cards", "--cards", "RTX 3060", "--json", str(file)]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    chosen, times = cards.tables(result)
    assert [row[:3] for row in chosen.rows] == [
        ["RTX 3060", "TensorRT for RTX", "`--bf16 --int8 --static-inputs`"],
        ["RTX 3060", "the torch backend", "`--bf16 --int8`"],
    ]
    found = {row[0]: row[2] for row in times.rows}
    assert found["`--bf16`"].endswith("(memory)")
    assert found["`--bf16 --fp8`"] == "-"
    assert "not run" in cards.footer(result)


def test_faults_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cards", "--cards", "RTX 4095"]) == 2
    assert "unknown card 'RTX 4095': nearest are RTX 4090" in capsys.readouterr().err
