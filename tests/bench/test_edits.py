"""Success of edits: held-out edits, the table, and its way into the documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontext.bench import edits
from kontext.bench.cli import main
from kontext.tiny.edits import KINDS
from kontext.tiny.hands import HELD_OUT

pytestmark = [
    # The random model's small tokenizer splits a prompt into more tokens than fit.
    pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning"),
]


def test_held_out_edits_are_the_same_for_every_number_of_steps() -> None:
    first, second = (edits.held_out("move", 3, seed=5) for _ in range(2))
    assert first == second
    assert first != edits.held_out("move", 3, seed=6)


def test_unfamiliar_edits_have_other_words_and_another_hand() -> None:
    for kind in KINDS:
        for edit in edits.unfamiliar(kind, 3, seed=5):
            assert edit.source is not None
            assert edit.source.hand == edit.target.hand == HELD_OUT


def test_success_table_goes_into_the_document(tiny_bundle: Path, tmp_path: Path) -> None:
    document, file = tmp_path / "docs" / "benchmarks.md", tmp_path / "edits.json"
    document.parent.mkdir()
    document.write_text("<!-- edits:begin -->\n<!-- edits:end -->\nkept\n")
    words = ["edits", str(tiny_bundle), "--steps", "2,1", "-n", "2", "--batch", "2"]
    assert main([*words, "--json", str(file)]) == 0
    assert main(["readme", str(tmp_path), "--results", str(tmp_path)]) == 0
    result = json.loads(file.read_text())
    assert list(result["successes"]) == ["2", "1"]
    for successes in (*result["successes"].values(), *result["unfamiliar"].values()):
        assert list(successes) == list(KINDS)
        assert all(0 <= count <= 2 for count in successes.values())
    assert "| edit | 2 steps | 1 steps | unfamiliar, 2 steps | unfamiliar, 1 steps |" in document.read_text()
    assert "| all |" in document.read_text()
    assert document.read_text().endswith("kept\n")
    file.write_text('{"what": "something else"}')
    assert main(["readme", str(tmp_path), "--results", str(tmp_path)]) == 2


def test_groups_weigh_their_kinds_alike() -> None:
    result = {"count": 4, "groups": {"a": "g", "b": "g"}, "successes": {"28": {"a": 4, "b": 1}}}
    (table,) = edits.tables(result)
    assert list(table.rows) == [["g: a", "100%"], ["g: b", "25%"], ["g", "62%"], ["all", "62%"]]
