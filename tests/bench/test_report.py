"""Tables, JSON and the sections of a document that a command rewrites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontext.bench.report import Table, finish, milliseconds, ratio, replace_section, write_json
from kontext.errors import KontextError

TABLE = Table(["stage", "median"], [["step", "1.5"], ["vae_decoder", "12.0"]])


def test_text_lines_up() -> None:
    assert TABLE.text().splitlines() == [
        "stage        median",
        "-----------  ------",
        "step            1.5",
        "vae_decoder    12.0",
    ]


def test_markdown() -> None:
    assert TABLE.markdown().splitlines()[:3] == ["| stage | median |", "| --- | ---: |", "| step | 1.5 |"]


def test_a_ratio_above_one_is_less_here() -> None:
    assert ratio(2.0, 5.0) == "2.50x"
    assert ratio(0.0, 5.0) == "-"


def test_units() -> None:
    assert milliseconds(0.01234) == "12.3"
    assert milliseconds(1.2345) == "1234"


def test_section_is_replaced_and_the_rest_is_kept(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- edits:begin -->\nold\n<!-- edits:end -->\nafter é\n", encoding="utf-8")
    for content in ("new", "newer"):
        replace_section(readme, "edits", content)
    text = readme.read_text(encoding="utf-8")
    assert text == "before\n<!-- edits:begin -->\nnewer\n<!-- edits:end -->\nafter é\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text", ["", "<!-- edits:begin -->", "<!-- edits:end --><!-- edits:begin -->"])
def test_a_document_without_the_section_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(KontextError, match="no section"):
        replace_section(readme, "edits", "new")
    assert readme.read_text() == text


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=r"cannot read .*README\.md"):
        replace_section(tmp_path / "README.md", "edits", "new")


def test_the_end_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "result.json"
    finish({"what": "test"}, [TABLE], "measured here", file)
    assert capsys.readouterr().out == f"{TABLE.text()}\n\nmeasured here\nwritten to {file}\n"
    result = json.loads(file.read_text())
    assert (result["what"], result["schema"], set(result)) == ("test", 1, {"what", "schema", "provenance"})
    finish({}, [TABLE], "measured here", None)
    assert capsys.readouterr().out.endswith("\nmeasured here\n")


def test_lists_of_numbers_take_a_line_and_stay_what_they_are(tmp_path: Path) -> None:
    value = {
        "samples": [1.5, -2, 3e-07, None, True],
        "nested": [[1, 2], [3]],
        "empty": [],
        "words": ["[1,\n2]", "a"],
        "mixed": [1, "a"],
    }
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text()
    assert json.loads(text) == value
    assert '"samples": [1.5, -2, 3e-07, null, true],' in text


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KontextError, match=r"cannot write .*result\.json"):
        write_json(tmp_path / "file" / "result.json", {})
