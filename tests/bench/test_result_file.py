"""What is read as a result, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.bench.cli import main
from kontext.bench.result_file import read_result
from kontext.errors import KontextError


@pytest.mark.parametrize("text", ['{"what": "latency"}', '{"what": "latency", "schema": 1}'])
def test_results_with_and_without_a_version(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    assert read_result(path)["what"] == "latency"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[1]", "does not say what was measured"),
        ('{"a": 1}', "does not say what was measured"),
        ('{"what": "latency", "schema": "new"}', 'its schema is "new"'),
        ('{"what": "latency", "schema": true}', "its schema is true"),
        ('{"what": "latency", "schema": 2}', "is a result of version 2, and this kontext-bench reads up to"),
    ],
)
def test_what_is_no_result(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(KontextError, match=message):
        read_result(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=r"cannot read .*No such file"):
        read_result(tmp_path / "nothing.json")


def test_documents_are_not_written_from_a_later_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "benchmarks.md").write_text("<!-- edits:begin -->\n<!-- edits:end -->\n")
    (tmp_path / "edits.json").write_text('{"what": "success of edits", "schema": 9}')
    assert main(["readme", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert "version 9" in capsys.readouterr().err
