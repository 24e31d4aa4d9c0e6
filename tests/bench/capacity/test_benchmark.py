"""kontext-bench capacity: plans from numbers and results, and one line for what makes no plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("simpy")
pytest.importorskip("torch")

from kontext.bench.cli import main


def test_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 edits a second of a second each, 2 an hour: 3 GPUs for 0.5 hours make 3600 edits for 3 of any currency."""
    file = tmp_path / "plan.json"
    words = [
        "capacity",
        "--seconds",
        "1",
        "--seconds",
        "1,1.2",
        "--rate",
        "2",
        "--p95",
        "3",
        "--hours",
        "0.5",
    ]
    assert main([*words, "--price", "2", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "GPUs  p50 [s]" in shown
    result = json.loads(file.read_text())
    single, batched = result["rows"]
    assert single["gpus"] == 3
    assert single["p95"] <= 3
    assert single["gpu_hours"] == pytest.approx(1.5, abs=0.01)
    assert single["cost_per_edit"] == pytest.approx(2 * 1.5 / single["edits"], rel=0.01)
    assert batched["gpus"] == 2
    assert result["provenance"]["seed"] == 0
    assert main(["capacity", "--seconds", "1", "--rate", "2", "--gpus", "3", "--hours", "0.5"]) == 0
    assert f"{single['p95']:.3g}" in capsys.readouterr().out  # the same fleet and seed


def test_a_plan_from_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "latency.json"
    source.write_text(
        json.dumps({"what": "latency", "sides": {"kontext": {"edit": {"samples": [0.9, 1.1]}}}})
    )
    words = ["capacity", str(source), "--per-day", "100000", "--gpus", "2", "--hours", "0.2"]
    more = [
        "--arrivals",
        "bursty",
        "--burst",
        "2,0.3,10",
        "--failures",
        "1",
        "--minimum",
        "1",
        "--loras",
        "2",
    ]
    assert main([*words, *more, "--swap", "0.1", "--cold-start", "5"]) == 0
    shown = capsys.readouterr().out
    assert "latency.json" in shown
    assert "bursty arrivals" in shown
    assert (
        "2 LoRAs, 0.1 s to change one; 1 GPUs always run, others start on demand; a start takes 5 s" in shown
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either SOURCE, a result with the times of a GPU, or --seconds"),
        (["x.json", "--seconds", "1"], "give either SOURCE"),
        (["--seconds", "1"], "give --rate or --per-day"),
        (["--seconds", "1", "--rate", "1", "--per-day", "1"], "not allowed with argument"),
        (["--seconds", "1", "--rate", "1"], "give either --p95, a goal, or --gpus, a fleet"),
        (["--seconds", "1", "--rate", "1", "--p95", "2", "--gpus", "2"], "give either --p95"),
        (["--seconds", "1", "--rate", "1e6", "--p95", "2"], "more than 20,000,000 edits"),
        (["--seconds", "2,1", "--rate", "1", "--p95", "2"], "takes seconds that do not fall with the batch"),
        (["--seconds", "0", "--rate", "1", "--p95", "2"], "takes a number, above 0, not '0'"),
        (["--seconds", "nan", "--rate", "1", "--p95", "2"], "takes a number, above 0, not 'nan'"),
        (["--seconds", "3", "--rate", "1", "--p95", "2"], "an edit alone on a GPU takes 3 s"),
        (["--seconds", "3", "--batch", "2", "--rate", "1", "--p95", "9"], "--batch goes with SOURCE"),
        (["--seconds", "1", "--rate", "1", "--gpus", "0"], "--gpus must be at least 1"),
        (["--seconds", "1", "--rate", "1", "--gpus", "1", "--minimum", "2"], "more than --gpus 1"),
        (["nothing.json", "--rate", "1", "--gpus", "1"], "cannot read nothing.json"),
        (["--check-server", "http://localhost", "--seconds", "1"], "leave out seconds"),
        (["--check-server", "http://localhost"], "add --batch"),
    ],
)
def test_what_makes_no_plan(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("burst", ["3", "3,0.2,x", "6,0.2,1", "0.5,0.2,1", "1,1,1"])
def test_bursts_that_are_none(burst: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["capacity", "--seconds", "1", "--rate", "1", "--gpus", "1", "--arrivals", "bursty"]
    assert main([*words, "--burst", burst]) == 2
    assert "--burst" in capsys.readouterr().err
