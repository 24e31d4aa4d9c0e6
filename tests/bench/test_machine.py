"""The machine's description: enough to judge a number by, and nothing private."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontext.bench.machine import describe_machine, machine_line
from kontext.bench.report import write_json


def test_results_carry_the_machine_and_nothing_private(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "result.json", {"machine": describe_machine()})
    machine = json.loads((tmp_path / "deep" / "result.json").read_text())["machine"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["libraries"]["numpy"]
    assert "GiB" in machine_line(machine)
    assert not {"host", "user", "path"} & set(machine)


@pytest.mark.parametrize(("cores", "words"), [(1, "Abacus, 1 core, 24 GiB"), (2, "Abacus, 2 cores, 24 GiB")])
def test_a_machine_on_machine_line(cores: int, words: str) -> None:
    machine = {
        "cpu": "Abacus",
        "cores": cores,
        "memory_gib": 24.0,
        "gpu": [],
        "libraries": {},
        "python": "3.11",
    }
    assert machine_line(machine) == f"{words}; Python 3.11"
