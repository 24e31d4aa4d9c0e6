"""The journal: lines that are whole, one for each job, and folders that are somebody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kontext.batch.journal import RESULTS, Journal
from kontext.errors import KontextError


def line(identity: str | None, row: int = 1, *, digest: str = "d", **more: Any) -> dict[str, Any]:
    return {"id": identity, "row": row, "digest": digest, "path": f"{identity}.png", "error": None, **more}


def failed(identity: str | None, row: int = 1, *, digest: str = "d") -> dict[str, Any]:
    return line(identity, row, digest=digest, path=None, error="no")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in (folder / RESULTS).read_bytes().splitlines()]


def test_what_is_made_needs_its_digest_and_its_picture(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "out") as journal:
        journal.append(line("a"))
        journal.append(failed("b"))
        journal.append(failed(None, 3))
        assert journal.made("a", "d") is None  # its picture is not there
        (tmp_path / "out" / "a.png").touch()
        assert journal.made("a", "d") is not None
        assert journal.made("a", "e") is None
        assert journal.made("b", "d") is not None
        assert journal.made(3, "d") is not None
    with Journal.open(tmp_path / "out") as journal:
        assert set(journal.lines) == {"a", "b", 3}
        assert journal.failed() == ["b", 3]
        journal.forget(journal.failed())
        assert lines(tmp_path / "out") == [line("a")]


def test_half_a_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(line("a", note="é"))
        journal.append(line("b", note="é"))
    whole = (tmp_path / RESULTS).read_bytes()
    second = whole.index(b"\n") + 1
    for length in range(len(whole)):
        (tmp_path / RESULTS).write_bytes(whole[:length])
        with Journal.open(tmp_path) as journal:
            assert list(journal.lines) == (["a"] if length >= second else [])
            journal.append(line("c"))
        assert [each["id"] for each in lines(tmp_path)] == (["a", "c"] if length >= second else ["c"])


def test_a_job_has_one_line_whatever_it_was_before(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(line("a"))
        journal.append(failed(None, 2))
        journal.append(line("b", 3))
        journal.make_room("b", 2, "a.png")  # row 2 can be read now, is the job b, and takes a's name
        journal.append(line("b", 2, digest="e"))
    assert lines(tmp_path) == [line("b", 2, digest="e")]


def test_folders_that_are_somebody_else_s(tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(KontextError, match=message), Journal.open(folder):
            pass

    (tmp_path / "file").touch()
    refused(tmp_path / "file", r"is a file: name a folder")
    refused(tmp_path / "no" / "out", r"no does not exist: make the folder first")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.pdf").touch()
    refused(other, r"other holds thesis\.pdf and no results\.jsonl: name a new folder")
    assert [path.name for path in other.iterdir()] == ["thesis.pdf"]
    for text in ("{}\n", "[]\n", "x\n", '{"id": [], "row": 1, "digest": "", "path": "", "error": ""}\n'):
        (other / RESULTS).write_text(text)
        refused(other, r"results\.jsonl: line 1 is no result of kontext-batch")
        assert (other / RESULTS).read_text() == text


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "out"):
        with (
            pytest.raises(KontextError, match="another kontext-batch is writing"),
            Journal.open(tmp_path / "out"),
        ):
            pass
    with Journal.open(tmp_path / "out"):
        pass
