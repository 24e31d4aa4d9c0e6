"""What kontext-batch costs, on a random model: every side runs, its figures hold together, refusals are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kontext.bench.batch import scaling
from kontext.bench.batch.benchmark import footer, tables
from kontext.bench.batch.lists import Settings, write_list
from kontext.bench.batch.speed import SAME, STAGES, UNCACHED
from kontext.bench.cli import main

FEW = ["--steps", "2", "--repeat", "1", "--size", "64x64", "--threads", "1"]
GRAPHS = {"text_encoder", "text_encoder_2", "vae_encoder", "modulation", "step", "vae_decoder"}


def measured(words: list[str], file: Path) -> dict[str, Any]:
    assert main(["batch", *words, *FEW, "--json", str(file)]) == 0
    result: dict[str, Any] = json.loads(file.read_text())
    return result


# What `in sequence` warns of; jobs' warnings are in their results.
@pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_side_runs(
    batch_size: int, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tiny_bundle), "-n", "4", "--batch-size", str(batch_size), "--no-ray"]
    result = measured(words, tmp_path / "batch.json")
    sides = result["sides"]
    assert list(sides) == ["bare step", "in sequence", "kontext-batch", SAME, UNCACHED]
    assert set(sides["bare step"]["seconds"]) == {"step"}
    assert set(sides["in sequence"]["seconds"]) == set(STAGES)
    assert set(sides["kontext-batch"]["seconds"]) == GRAPHS
    assert set(sides[UNCACHED]["seconds"]) == GRAPHS
    assert GRAPHS - set(sides[SAME]["seconds"]) == set()  # the first edit fills the cache
    for side in sides.values():
        assert 0 < sum(side["seconds"].values()) <= side["seconds_of_edit"]
        rate = side["edits_per_second"]["median"] * 2 / batch_size
        assert side["steps_per_second"]["median"] == pytest.approx(rate, rel=0.01)
    assert sides["bare step"]["of_bare_step"]["median"] == 1
    assert result["scaling"] == {"skipped": "left out by --no-ray"}
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*sides, "Workers of Ray were not measured: left out by --no-ray"))


def test_workers(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    if reason := scaling.obstacle():
        pytest.skip(reason)
    settings = Settings(tiny_bundle, 2, 1, (64, 64), 0)
    result = scaling.measure_scaling(settings, batch_size=1, repeat=1)
    assert [side["workers"] for side in result["sides"].values()] == [1, 1, 2]
    assert all(side["edits_per_second"]["median"] > 0 for side in result["sides"].values())
    assert result["loading_seconds"] > 0


def test_without_ray_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.importlib.util, "find_spec", lambda _: None)
    assert scaling.obstacle().startswith("Ray is not installed: pip install ")


def test_lists(tmp_path: Path) -> None:
    settings = Settings(tmp_path, 3, 4, (64, 96), 7)
    lists = {}
    for same in (False, True):
        path = write_list(tmp_path / str(same), settings, same=same)
        lists[same] = [json.loads(line) for line in path.read_text().splitlines()]
        assert all((path.parent / row["image"]).is_file() for row in lists[same])
        assert [row["seed"] for row in lists[same]] == [7, 8, 9]
        assert {(row["steps"], row["size"]) for row in lists[same]} == {(4, "64x96")}
    assert [len({row[name] for row in lists[False]}) for name in ("image", "prompt")] == [3, 3]
    assert [len({row[name] for row in lists[True]}) for name in ("image", "prompt")] == [1, 1]


def test_tables_and_footer() -> None:
    def spread(median: float) -> dict[str, float]:
        return {"median": median, "least": median * 0.9, "most": median * 1.1, "count": 5}

    def side(rate: float, share: float, **seconds: float) -> dict[str, Any]:
        return {
            "steps_per_second": spread(rate),
            "edits_per_second": spread(rate / 10),
            "of_bare_step": spread(share),
            "seconds": seconds,
            "seconds_of_edit": 10 / rate,
        }

    result: dict[str, Any] = {
        "model": "abacus",
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "edits": 24,
        "steps": 10,
        "size": [128, 64],
        "batch_size": 1,
        "repeat": 5,
        "sides": {
            "bare step": side(100, 1, step=0.1),
            "in sequence": side(80, 0.8, read=0.01, step=0.1),
            "kontext-batch": side(95, 0.95, step=0.1),
        },
        "scaling": {
            "loading_seconds": 7.2,
            "sides": {
                "one process": {"workers": 1, "edits_per_second": spread(4), "speed": spread(1)},
                "2 workers": {"workers": 2, "edits_per_second": spread(7), "speed": spread(1.8)},
            },
        },
        "machine": {"cpu": "Abacus", "cores": 2, "memory_gib": 24, "gpu": [], "python": "3", "libraries": {}},
    }
    speed, stages, workers = tables(result)
    assert speed.rows[0][3] == "-"
    assert speed.rows[2] == ["kontext-batch", "95.0", "85.5 to 104.5", "9.50", "0.950", "0.855 to 1.045"]
    assert stages.rows[0] == ["read", "-", "10.0 (8%)", "-"]
    assert stages.rows[-1] == ["edit", "100.0 (100%)", "125.0 (100%)", "105.3 (100%)"]
    assert workers.rows[1] == ["2 workers", "7.00", "1.80x", "0.90", "0.81 to 0.99"]
    assert "kontext-batch makes 1.19 times its steps. Workers are of Ray on this machine" in footer(result)
    assert footer(result).endswith("\nAbacus, 2 cores, 24 GiB; Python 3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--edits", "0"], "--edits must be at least 1, not 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--edits", "5", "--batch-size", "2"], "--edits must be a multiple of --batch-size, 2, not 5"),
        (["--device", "cuda", "--threads", "1"], "--threads needs --device cpu"),
        (["--threads", "0"], "threads must be from 1 to "),
        (["--size", "100x100"], "multiple"),
        (["--steps", "x"], "--steps"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", str(tiny_bundle), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_bundle_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
