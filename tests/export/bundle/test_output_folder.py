"""Folders that an export may write, may replace, and must not touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.export.bundle.output_folder import Kind, check_output, publish


def listed(folder: Path) -> set[str] | None:
    """A set says in a file what it consists of."""
    file = folder / "list"
    return {"list", *file.read_text().split()} if file.is_file() else None


SET = Kind("set", "set of files", listed, ignored="cache")


def make_set(folder: Path, *names: str) -> Path:
    folder.mkdir()
    (folder / "list").write_text(" ".join(names))
    for name in names:
        (folder / name).write_text(folder.name)
    return folder


def test_what_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    ours = make_set(tmp_path / "ours", "a")
    for output, force, message in (
        (tmp_path / "nowhere" / "out", False, "nowhere is not a folder: make it first"),
        (tmp_path / "file", True, "file exists and is not a folder"),
        (tmp_path / "other", True, "other exists and is not a set of files: choose another folder"),
        (ours, False, "ours exists: give --force to replace it"),
    ):
        with pytest.raises(KontextError, match=message):
            check_output(output, SET, force)
    (ours / "cache").mkdir()
    (ours / "cache" / "compiled").touch()
    check_output(ours, SET, True)
    (ours / "notes.txt").touch()
    with pytest.raises(KontextError, match=r"notes\.txt is not the set's: move it away"):
        check_output(ours, SET, True)


def test_temporary_files_of_a_killed_process_are_nobodys(tmp_path: Path) -> None:
    ours = make_set(tmp_path / "ours", "a")
    (ours / ".a.0123abcd.tmp").touch()
    check_output(ours, SET, True)


def test_links_to_folders_are_somebodys(tmp_path: Path) -> None:
    ours = make_set(tmp_path / "ours")
    (ours / "photos").symlink_to(tmp_path)
    with pytest.raises(KontextError, match="photos is not the set's"):
        check_output(ours, SET, True)


def test_a_new_folder_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output(Path("out"), SET, False)
    publish(make_set(tmp_path / "out.partial", "a"), Path("out"), SET, False)
    assert (tmp_path / "out" / "a").read_text() == "out.partial"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_old_one_is_replaced_whole(tmp_path: Path) -> None:
    output = make_set(tmp_path / "out", "a", "b")
    partial = make_set(tmp_path / "out.partial", "a")
    with pytest.raises(KontextError, match="give --force"):
        publish(partial, output, SET, False)
    (tmp_path / "out.replaced").mkdir()
    with pytest.raises(KontextError, match="is in the way: an earlier export was killed while it replaced"):
        check_output(output, SET, True)  # before the work, not after it
    (tmp_path / "out.replaced").rmdir()
    publish(partial, output, SET, True)
    assert {path.name for path in output.iterdir()} == {"list", "a"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
