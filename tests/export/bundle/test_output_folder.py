"""Folders that an export may write, may replace, and must not touch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.export.bundle import output_folder
from kontext.export.bundle.folder_kind import JOURNAL, Kind
from kontext.export.bundle.output_folder import check_output, locked_output, publish
from kontext.locks import locked_folder


def listed(folder: Path) -> set[str] | None:
    """A set says in a file what it consists of."""
    file = folder / "list"
    return {"list", *file.read_text().split()} if file.is_file() else None


SET = Kind("set", "set of files", "list", listed, re.compile("list|[ab]"), re.compile(r"cache/\w+"))


def make_set(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(folder.name)
    (folder / "list").write_text(" ".join(names))
    return folder


def unfinished(folder: Path, *names: str) -> Path:
    (make_set(folder, *names) / JOURNAL).write_text("{}")
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
    for stranger in ("notes.txt", "cache/photo.jpg"):
        (ours / stranger).touch()
        with pytest.raises(KontextError, match=rf"{stranger} is not part of the set: move it away"):
            check_output(ours, SET, True)
        (ours / stranger).unlink()


def test_outputs_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "in" / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "in")
    for output, message in (
        ("/", "^/ cannot be replaced: choose a name in it$"),
        ("/..", "^/ cannot be replaced"),
        ("..", f"^{re.escape(str(tmp_path))} exists and is not a set of files"),
        (".", "in exists and is not a set of files"),
        ("loop", "^cannot write loop: "),
        ("x" * 300, "^cannot write .*: File name too long$"),
    ):
        with pytest.raises(KontextError, match=message):
            check_output(Path(output), SET, True)


def test_temporary_files_of_a_killed_process_are_nobodys(tmp_path: Path) -> None:
    ours = make_set(tmp_path / "ours", "a")
    (ours / ".a.0123abcd.tmp").touch()
    check_output(ours, SET, True)


def test_links_to_folders_are_somebodys(tmp_path: Path) -> None:
    ours = make_set(tmp_path / "ours")
    (ours / "photos").symlink_to(tmp_path)
    with pytest.raises(KontextError, match="photos is not part of the set"):
        check_output(ours, SET, True)


def test_a_new_folder_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output(Path("out"), SET, False)
    publish(unfinished(tmp_path / "out.partial", "a"), tmp_path / "out", SET, False)
    assert (tmp_path / "out" / "a").read_text() == "out.partial"
    assert contents(tmp_path) == {"out/a", "out/list"}


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture(params=["exchanged at once", "in two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How one folder replaces another: what this file system does, or what others do."""
    if request.param == "in two renames":
        monkeypatch.setattr(output_folder, "exchange", lambda first, second: False)
    return str(request.param)


def test_the_old_one_is_replaced_whole(tmp_path: Path, way: str) -> None:
    output = make_set(tmp_path / "out", "a", "b")
    partial = unfinished(tmp_path / "out.partial", "a")
    with pytest.raises(KontextError, match="give --force"):
        publish(partial, output, SET, False)
    (tmp_path / "out.replaced").mkdir()
    with pytest.raises(KontextError, match="is in the way: move it away"):
        check_output(output, SET, True)  # before the work, not after it
    (tmp_path / "out.replaced").rmdir()
    publish(partial, output, SET, True)
    assert contents(tmp_path) == {"out/list", "out/a"}
    assert (output / "a").read_text() == "out.partial"


def test_the_system_exchanges_folders_at_once(tmp_path: Path) -> None:
    """On Linux's own file systems; elsewhere the fallback is taken."""
    make_set(tmp_path / "first", "a")
    make_set(tmp_path / "second", "b")
    if not output_folder.exchange(tmp_path / "first", tmp_path / "second"):
        pytest.skip("this file system cannot exchange two names")
    assert contents(tmp_path) == {"first/b", "first/list", "second/a", "second/list"}
    assert not output_folder.exchange(tmp_path / "first", tmp_path / "third")


@pytest.mark.parametrize("state", ["exchanged", "set aside", "deleting", "deleted", "restored"])
def test_what_a_killed_export_left_is_settled(tmp_path: Path, state: str) -> None:
    """Every row of the table in output_folder.py, made by hand; test_publish.py in tests/torture/ kills for real."""
    output, partial, replaced = (tmp_path / f"out{end}" for end in ("", ".partial", ".replaced"))
    unfinished(partial if state == "restored" else output, "a")
    if state == "exchanged":
        make_set(partial, "a", "b")
    elif state in ("set aside", "restored"):
        make_set(replaced, "a", "b")
    elif state == "deleting":
        make_set(replaced, "a", "b")
        (replaced / "a").unlink()
    elif state == "deleted":
        replaced.mkdir()
    (tmp_path / "out.partial.lock").touch()
    with locked_output(output, SET):
        pass
    if state == "restored":
        assert contents(tmp_path) == {f"out/{name}" for name in ("a", "b", "list")} | {
            f"out.partial/{name}" for name in ("a", "list", JOURNAL)
        }
    else:
        assert contents(tmp_path) == {"out/a", "out/list", f"out/{JOURNAL}"}
    assert not replaced.exists()
    assert not (tmp_path / "out.partial.lock").exists()


def test_files_that_come_while_a_folder_is_replaced_stay(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = make_set(tmp_path / "out", "a", "b")
    partial = unfinished(tmp_path / "out.partial", "a")
    check = output_folder.check_free
    with monkeypatch.context() as patch:
        patch.setattr(
            output_folder, "check_free", lambda *args: (check(*args), (output / "photo.jpg").touch())
        )
        with pytest.warns(UserWarning, match=r"out\.replaced is left"):
            publish(partial, output, SET, True)
    assert contents(tmp_path) == {"out/list", "out/a", "out.replaced/photo.jpg"}


def test_one_export_at_a_time(tmp_path: Path) -> None:
    """Also by another name of the folder."""
    (tmp_path / "disk").mkdir()
    output = make_set(tmp_path / "disk/out", "a")
    (tmp_path / "link").symlink_to(output)
    with locked_output(output, SET):
        for name in (output, tmp_path / "link", tmp_path / "disk/../disk/out"):
            with pytest.raises(KontextError, match=r"another export is writing .*out$"):
                check_output(name, SET, True)
    check_output(output, SET, True)
    assert contents(tmp_path) == {"disk/out/a", "disk/out/list"}


def test_a_folder_in_use_is_not_replaced(tmp_path: Path) -> None:
    """While engines are added to it, or a repository is made of it."""
    output = make_set(tmp_path / "out", "a")
    partial = unfinished(tmp_path / "out.partial", "a")
    with locked_folder(output, "busy", shared=True), pytest.raises(KontextError, match=r"is using .*out"):
        publish(partial, output, SET, True)
    assert (output / "a").read_text() == "out"
    publish(partial, output, SET, True)


def test_a_lock_of_somebody_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "out.partial.lock").write_text("mine")
    with pytest.raises(KontextError, match=r"out\.partial\.lock is in the way"):
        check_output(tmp_path / "out", SET, False)
    assert (tmp_path / "out.partial.lock").read_text() == "mine"
    (tmp_path / "full").mkdir()
    (tmp_path / "full.partial.lock").mkdir()
    with pytest.raises(KontextError, match=r"cannot write .*full\.partial\.lock"):
        check_output(tmp_path / "full", SET, False)
