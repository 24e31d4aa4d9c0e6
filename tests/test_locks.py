"""Locks between processes: who gets one, what a killed process leaves, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.locks import locked_file, locked_folder


def test_the_file_is_there_only_while_it_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()  # of a process that was killed
    with locked_file(path, "busy"):
        assert path.exists()
        with pytest.raises(KontextError, match=r"^busy$"), locked_file(path, "busy"):
            pass
    assert not path.exists()


def test_a_lock_of_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process ends between our opening of the file and our locking it."""
    path = tmp_path / "lock"
    flock, first = fcntl.flock, iter([True])

    def late(descriptor: int, kind: int) -> None:
        if next(first, False):
            path.unlink()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked_file(path, "busy"):
        assert path.exists()
        with pytest.raises(KontextError, match="busy"), locked_file(path, "busy"):
            pass


def test_a_folder_is_locked_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with locked_folder(tmp_path / "a", "busy"):
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(KontextError, match="busy"), locked_folder(tmp_path / "b", "busy", shared=True):
            pass
    with (
        locked_folder(tmp_path / "b", "busy", shared=True),
        locked_folder(tmp_path / "b", "busy", shared=True),
    ):
        with pytest.raises(KontextError, match="busy"), locked_folder(tmp_path / "b", "busy"):
            pass


def test_a_folder_that_was_replaced_meanwhile_is_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    old, flock, first = folder.stat(), fcntl.flock, iter([True])

    def late(descriptor: int, kind: int) -> None:
        if next(first, False):
            folder.rename(tmp_path / "old")
            folder.mkdir()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked_folder(folder, "busy"):
        assert not os.path.samestat(folder.stat(), old)
        with pytest.raises(KontextError, match="busy"), locked_folder(folder, "busy"):
            pass


def test_without_locks_one_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks no folders (EBADF), Lustre often nothing."""

    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for lock, path in ((locked_folder, tmp_path), (locked_file, tmp_path / "lock")):
        with pytest.warns(UserWarning, match="cannot be locked .*: let no other process write there"):
            with lock(path, "busy"):
                pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), locked_file(tmp_path / "link", "busy"):
        pass
    assert not (tmp_path / "mine").exists()
