"""Where a result comes from: what the system, git and the schema say, and nothing that names the machine."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonschema")

import jsonschema

from kontext.bench import cli, exporting, provenance
from kontext.bench.registry import SUBCOMMANDS

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "bench/schema/result.schema.json").read_text(encoding="utf-8"))
RESULTS = sorted((ROOT / "bench/results").glob("*.json"))


def check(result: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(result)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == provenance.SCHEMA


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results_are_what_the_schema_says(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    check(result)
    assert result["what"] in [rule["if"]["properties"]["what"]["const"] for rule in SCHEMA["allOf"]]


def exported(*_: object, **__: object) -> dict[str, Any]:
    from kontext.bench.machine import describe_machine

    return {"what": "export", "model": "m", "formats": {}, "machine": describe_machine()}


def test_a_command_s_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times and commit against the clock and git."""
    monkeypatch.setattr(exporting, "measure_exports", exported)
    file, before = tmp_path / "result.json", datetime.now(timezone.utc).replace(microsecond=0)
    assert cli.main(["export", str(tmp_path), "--repeat", "2", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    check(result)
    assert list(result)[:2] == ["what", "schema"]
    found = result["provenance"]
    assert found["command"] == f"kontext-bench export {tmp_path.name} --repeat 2 --json result.json"
    assert str(tmp_path) not in file.read_text()
    assert (found["state"], found["seed"], found["warmup"]) == ("cold", None, None)
    started = datetime.strptime(found["started"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    assert before <= started <= datetime.now(timezone.utc)
    assert 0 <= found["seconds"] < 60
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode == 0:
        assert found["source"]["commit"] == git.stdout.strip()


@pytest.mark.parametrize(
    ("changed", "modified"), [(None, False), ("code.py", True), ("bench/results/a.json", False)]
)
def test_a_commit_is_modified_if_its_code_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str | None, modified: bool
) -> None:
    (tmp_path / "bench/results").mkdir(parents=True)
    for name in ("code.py", "bench/results/a.json"):
        (tmp_path / name).touch()
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    if changed:
        (tmp_path / changed).write_text("1")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    found = provenance.source()
    assert found is not None
    assert found["modified"] is modified


def test_an_installation_from_a_commit_and_from_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "origin", lambda: {"vcs_info": {"vcs": "git", "commit_id": "0" * 40}})
    assert provenance.source() == {"commit": "0" * 40, "modified": False}
    monkeypatch.setattr(provenance, "origin", dict)
    assert provenance.source() is None


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("latency", "latency"),
        ("build/kontext-tiny-fp32", "build/kontext-tiny-fp32"),
        ("/srv/models/flux", "flux"),
        ("~/bundles/tiny/", "tiny"),
        ("../../someone/tiny", "tiny"),
        ("..", "."),
        ("--json=/tmp/a/b.json", "--json=b.json"),
        ("/a/b,/c/d", "b,d"),
        ("/a/style.safetensors:0.8", "style.safetensors:0.8"),
        (r"C:\Users\someone\tiny", "tiny"),
        ("http://user:word@inside.example.org:8000/v2", "http://HOST:8000"),
        ("grpc://127.0.0.1:8001", "grpc://127.0.0.1:8001"),
        ("--server=http://localhost", "--server=http://localhost"),
        ("make it red/blue", "make it red/blue"),
    ],
)
def test_words_name_no_machine(word: str, kept: str) -> None:
    assert provenance.nameless(word) == kept


def test_what_is_timed_is_warm_or_cold() -> None:
    assert {entry.state for entry in SUBCOMMANDS} == {None, "warm", "cold"}
    assert all(entry.measures for entry in SUBCOMMANDS if entry.state)
