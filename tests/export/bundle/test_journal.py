"""The journal of an unfinished export: what is resumed, what is begun anew, and whose folder is left alone."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.export.bundle.folder_kind import JOURNAL, Kind
from kontext.export.bundle.journal import Journal

SET = Kind(
    "set",
    "set",
    "list",
    lambda folder: None,
    re.compile(r"(graphs/)?\w\.onnx|w|w\.safetensors"),
    re.compile(""),
)
KEY = {"checkpoint": "abc", "recipe": [1, 2]}


def reopen(folder: Path, key: object = KEY) -> Journal:
    """As another process would find it."""
    with Journal.open(folder, key, SET) as journal:
        return journal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of an export that has one file whole, one to the middle, and a temporary file of a killed process."""
    folder = tmp_path / "out.partial"
    with Journal.open(folder, KEY, SET) as journal:
        journal.add("graphs/a.onnx", b"graph")
        journal.finish("b.onnx", 3, "0" * 64)
        (folder / "b.onnx").write_bytes(b"123")
        (folder / "w.safetensors").write_bytes(bytes(100))
        journal.mark("w.safetensors", 60)
        (folder / ".c.onnx.0123abcd.tmp").write_bytes(b"half")
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_same_export_resumes(folder: Path) -> None:
    journal = reopen(folder)
    assert journal.files == {
        "graphs/a.onnx": {"size": 5, "sha256": hashlib.sha256(b"graph").hexdigest()},
        "b.onnx": {"size": 3, "sha256": "0" * 64},
    }
    assert journal.synced("w.safetensors") == 60
    assert names(folder) == {JOURNAL, "graphs/a.onnx", "b.onnx", "w.safetensors"}
    assert (folder / "graphs/a.onnx").read_bytes() == b"graph"


@pytest.mark.parametrize("key", [None, {"checkpoint": "abc", "recipe": [1, 3]}, "abc"])
def test_another_export_empties_the_folder(folder: Path, key: object) -> None:
    journal = reopen(folder, key)
    assert (journal.files, journal.progress) == ({}, {})
    assert [path.name for path in folder.iterdir()] == [JOURNAL]
    assert json.loads((folder / JOURNAL).read_bytes()) == {"key": key, "files": {}, "progress": {}}


def test_a_file_is_finished_while_it_has_its_size(folder: Path) -> None:
    journal = reopen(folder)
    assert journal.finished("b.onnx")
    assert journal.finished("b.onnx", 3)
    assert not journal.finished("b.onnx", 4)
    assert not journal.finished("w.safetensors")
    (folder / "b.onnx").write_bytes(b"1234")
    assert not journal.finished("b.onnx")
    (folder / "b.onnx").unlink()
    assert not journal.finished("b.onnx")


@pytest.mark.parametrize(("size", "synced"), [(100, 60), (60, 60), (59, 0), (0, 0)])
def test_a_file_shorter_than_was_synced_is_begun_anew(folder: Path, size: int, synced: int) -> None:
    (folder / "w.safetensors").write_bytes(bytes(size))
    assert reopen(folder).synced("w.safetensors") == synced
    (folder / "w.safetensors").unlink()
    assert reopen(folder).synced("w.safetensors") == 0
    assert reopen(folder).synced("b.onnx") == 0


def test_finishing_ends_the_progress(folder: Path) -> None:
    with Journal.open(folder, KEY, SET) as journal:
        journal.finish("w.safetensors", 100, "1" * 64)
    again = reopen(folder)
    assert again.progress == {}
    assert again.finished("w.safetensors", 100)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"key": 1}', b"\xff", b'{"files": {}, "progress": {}}']
)
def test_a_torn_journal_begins_anew(folder: Path, content: bytes) -> None:
    (folder / JOURNAL).write_bytes(content)
    assert reopen(folder).files == {}
    assert names(folder) == {JOURNAL}


def test_progress_alone_is_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    with Journal.open(folder, KEY, SET) as journal:
        journal.mark("w.safetensors", 8)
        (folder / "w.safetensors").write_bytes(bytes(9))
    assert reopen(folder).synced("w.safetensors") == 8


def test_every_change_is_on_disk_at_once(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "out.partial", KEY, SET)
    with journal:
        journal.mark("w", 7)
        saved = json.loads((tmp_path / "out.partial" / JOURNAL).read_bytes())
        assert saved == {"key": KEY, "files": {}, "progress": {"w": 7}}
        journal.mark("w", 8)
        assert json.loads((tmp_path / "out.partial" / JOURNAL).read_bytes())["progress"] == {"w": 8}


def test_files_of_others_are_left_alone(folder: Path, tmp_path: Path) -> None:
    """A photo, a link to a folder, and a file in a folder of its own, also if the folder is to be begun anew."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    for make in (
        lambda: (folder / "photo.jpg").touch(),
        lambda: (folder / "graphs/link").symlink_to(tmp_path / "mine"),
        lambda: (folder / "w").symlink_to(tmp_path / "mine"),
    ):
        make()
        before = names(folder)
        if (folder / "w").is_symlink():  # a name that an export gives: the link goes, what it leads to stays
            reopen(folder, "another")
        else:
            with pytest.raises(KontextError, match="is not part of the unfinished set: move it away"):
                reopen(folder, "another")
            assert names(folder) == before
        for name in ("photo.jpg", "graphs/link"):
            (folder / name).unlink(missing_ok=True)
    assert (tmp_path / "mine/thesis.tex").exists()


def test_a_journal_that_was_never_written_counts(tmp_path: Path) -> None:
    """Killed before the first rename of the journal's temporary file."""
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / f".{JOURNAL}.0123abcd.tmp").touch()
    assert reopen(folder).files == {}
    assert names(folder) == {JOURNAL}


def test_what_is_no_exports_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/film.part").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(KontextError, match="is in the way and is not an unfinished export: move it away"):
            Journal.open(tmp_path / name, KEY, SET)
    assert names(tmp_path) == {"file", "folder/film.part"}
    (tmp_path / "empty").mkdir()
    assert reopen(tmp_path / "empty").files == {}


def test_a_fault_of_the_users_leaves_nothing_and_any_other_keeps_all(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Journal.open(folder, KEY, SET):
        raise KeyboardInterrupt
    assert "b.onnx" in names(folder)
    with pytest.raises(KontextError, match="damaged"), Journal.open(folder, KEY, SET):
        raise KontextError("the checkpoint is damaged")
    assert not folder.exists()
