"""kontext-bench compare: exit codes, tables, and one line for what cannot be compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")

from kontext.bench.cli import main
from kontext.bench.compare import command
from kontext.bench.machine import describe_machine
from kontext.bench.report import write_result
from kontext.bench.timing import Percentiles


def latency(factor: float = 1.0, **changes: Any) -> dict[str, Any]:
    stages = {"step": [0.010, 0.011, 0.012, 0.0105, 0.0115], "edit": [0.3, 0.31, 0.305, 0.315, 0.32]}
    side = {
        name: Percentiles.of([factor * each for each in values]).to_json() for name, values in stages.items()
    }
    return {
        "what": "latency",
        "model": "m",
        "precision": "fp32",
        "device": "cpu",
        "steps": 28,
        "guidance": 2.5,
        "seed": 0,
        "size": [128, 128],
        "sides": {"kontext": side},
        "peak_bytes": {"kontext": 100 << 20},
        "machine": describe_machine(),
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, result: dict[str, Any]) -> str:
    write_result(Path(name), result)
    return name


def test_a_regression_is_exit_code_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written("a.json", latency()), written("b.json", latency(1.5))]
    assert main(["compare", *files, "--json", "c.json"]) == 1
    shown = capsys.readouterr().out
    assert "kontext, step [ms]" in shown
    assert "+50.0%" in shown
    assert "Worse: kontext, step; kontext, edit." in shown
    result = json.loads(Path("c.json").read_text())
    assert [row["verdict"] for row in result["figures"]] == ["worse", "worse", "no difference"]
    assert result["provenance"]["command"] == "kontext-bench compare a.json b.json --json c.json"
    assert main(["compare", *reversed(files)]) == 0
    assert main(["compare", *files, "--threshold", "60%"]) == 0
    assert main(["compare", *files, "--alpha", "0.1%"]) == 0
    assert "Nothing is worse. 2 figures had too few runs to tell." in capsys.readouterr().out


def test_nothing_that_could_be_compared_is_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [written("a.json", latency(peak_bytes={})), written("b.json", latency(1.5, peak_bytes={}))]
    assert main(["compare", *files, "--alpha", "0.1%"]) == 2
    said = capsys.readouterr()
    assert "Nothing could be compared: 2 figures had too few runs to tell.\n" in said.out
    assert said.err == "error: nothing could be compared: 2 figures had too few runs to tell\n"


def test_a_crash_is_no_regression(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "judge_figures", lambda *_: 1 // 0)
    file = written("a.json", latency())
    assert main(["compare", file, file]) == 2
    assert "error: the comparison failed: integer division" in capsys.readouterr().err


def test_the_rules_are_in_percent_and_names_are_on_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {"\x1b[2J": latency()["sides"]["kontext"], **latency()["sides"]}
    file = written("a.json", latency(sides=sides))
    assert main(["compare", file, written("b.json", latency()), "--threshold", "7.5%"]) == 0
    shown = capsys.readouterr().out
    assert "more than 7.5 % of A's value (success: 7.5 points; ratios: 0.5 dB" in shown
    assert "Only in A: \\x1b[2J, step; \\x1b[2J, edit." in shown


def test_the_same_result_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written("a.json", latency())
    assert main(["compare", file, file]) == 0
    assert "Nothing is worse." in capsys.readouterr().out


def other_machine() -> dict[str, Any]:
    return {**describe_machine(), "cpu": "Abacus"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (latency(steps=4), "a.json and b.json cannot be compared: steps is 28 and 4"),
        (latency(size=[64, 64]), "size is [128, 128] and [64, 64]"),
        (latency(model="n"), "model is 'm' and 'n'"),
        (latency(what="cold start"), "is a result of 'latency' and b.json of 'cold start'"),
        (latency(machine=other_machine()), "were measured on different machines: cpu is"),
        (
            latency(sides={"other": latency()["sides"]["kontext"]}, peak_bytes={}),
            "have no figure in common: kontext, step; kontext, edit; kontext",
        ),
        (latency(sides={}), "b.json is not a result of this benchmark (it has no sides): measure it again"),
        (latency(sides=[]), "it has no sides"),
        (latency(sides=None), "it has no sides"),
        (latency(peak_bytes={"kontext": 10**400}), "kontext, peak memory: 1000000"),
        (latency(peak_bytes={"kontext": 0}), "kontext, peak memory: 0 cannot be a memory"),
        (latency(peak_bytes={"kontext": -5}), "kontext, peak memory: -5 cannot be a memory"),
        (latency(-1.0), "kontext, step: -0.01 cannot be a time"),
        (latency(sides={"kontext": {"step": {"samples": "no"}}}), "b.json is not a result of this benchmark"),
        (latency(sides={"kontext": {"step": {"median": 1.0}}}), "b.json is not a result of this benchmark"),
        (
            latency(sides={"kontext": {"step": {"samples": [float("nan")]}}}),
            "b.json: sides.kontext.step.samples.0 is nan, which is no number",
        ),
        (latency(machine=5), "b.json does not say where it comes from"),
        (latency(provenance="x"), "b.json does not say where it comes from"),
        (latency(provenance={"source": "x"}), "b.json has a provenance that cannot be read"),
        (latency(provenance={"load_average": 3}), "b.json has a provenance that cannot be read"),
    ],
)
def test_what_cannot_be_compared(
    folder: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], message: str
) -> None:
    files = [written("a.json", latency()), "b.json"]
    Path("b.json").write_text(json.dumps({"schema": 1, "provenance": {}, **other}))
    assert main(["compare", *files]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_bad_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = written("a.json", latency())
    old = copy.deepcopy(latency())
    Path("old.json").write_text(json.dumps(old))
    Path("new.json").write_text(json.dumps({**old, "schema": 2}))
    Path("plans.json").write_text(json.dumps({"what": "plans"}))
    for words, message in (
        ([a, "old.json"], "old.json is from before results kept the value of every run"),
        ([a, "new.json"], "new.json is a result of version 2"),
        ([a, "nothing.json"], "cannot read nothing.json"),
        (["plans.json", "plans.json"], "results of 'plans' cannot be compared: nothing is measured in it"),
        ([a, a, "--threshold", "0.05"], "takes a share in percent, such as 5%, not '0.05'"),
        ([a, a, "--alpha", "0%"], "takes a share above 0% and below 100%, not '0%'"),
        ([a, a, "--threshold-db", "much"], "takes a number of decibels"),
    ):
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_across_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written("a.json", latency()), written("b.json", latency(machine=other_machine()))]
    assert main(["compare", *files, "--across-machines"]) == 0
    assert "warning: the results were measured on different machines" in capsys.readouterr().err


def test_other_versions_and_formats_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = describe_machine()
    machine["libraries"] = {**machine["libraries"], "numpy": "0.1"}
    files = [written("a.json", latency()), written("b.json", latency(machine=machine, precision="bf16"))]
    assert main(["compare", *files]) == 0
    said = capsys.readouterr()
    assert "→ 0.1" in said.out
    assert "warning: the bundles are fp32 and bf16" in said.err
    files[1] = written("c.json", latency(precision="fp8", compute="fp32"))
    assert main(["compare", *files]) == 0
    assert "warning: the bundles are fp32 and fp8 weights, computing in fp32" in capsys.readouterr().err
