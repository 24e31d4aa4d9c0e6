"""Temporary folders: gone at the end, also after kill -9, and never while their process lives or if somebody else's."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kontext.temporary_folder import temporary_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_goes_with_the_context(tmp_path: Path) -> None:
    with temporary_folder("test", tmp_path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file").touch()
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        with temporary_folder("test", tmp_path) as other:  # takes no notice of one that is in use
            assert names(tmp_path) == sorted([folder.name, other.name])
    with pytest.raises(KeyboardInterrupt), temporary_folder("test", tmp_path):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_the_next_process_cleans_up_after_a_killed_one(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kontext.temporary_folder import temporary_folder\n"
        "with temporary_folder('test', Path(sys.argv[1])) as folder:\n"
        "    (folder / 'file').touch(); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (left,) = tmp_path.iterdir()
        with temporary_folder("test", tmp_path):
            assert (left / "file").exists()
        process.kill()
    assert names(tmp_path) == [left.name]
    with temporary_folder("other", tmp_path) as folder:
        assert names(tmp_path) == [folder.name]


def test_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "kontext-notes-20260101").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "kontext-test-0123456789abcdef").symlink_to(tmp_path / "mine")
    (tmp_path / "kontext-test-0123456789abcdee").touch()
    before = names(tmp_path)
    with temporary_folder("test", tmp_path):
        pass
    assert names(tmp_path) == before


def test_one_that_was_taken_for_abandoned_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process starts between our making the folder and our locking it."""
    flock, first = fcntl.flock, iter([True])

    def late(descriptor: int, kind: int) -> None:
        if next(first, False):
            next(tmp_path.iterdir()).rmdir()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with temporary_folder("test", tmp_path) as folder:
        assert names(tmp_path) == [folder.name]


def test_without_locks_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folder("test", tmp_path) as folder, temporary_folder("test", tmp_path) as other:
        assert names(tmp_path) == sorted([folder.name, other.name])
    assert names(tmp_path) == []
