"""Locks between processes, which the system releases when a process dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from .errors import KontextError


@contextlib.contextmanager
def locked_file(path: Path, busy: str) -> Iterator[None]:
    """A context in which no other process is in one with the same `path`, a file that exists only meanwhile.

    A killed process leaves the file, which is empty and without effect; the next context removes it.

    Raises:
        KontextError: another process is, in the words of `busy`; or the file is somebody else's.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if os.fstat(descriptor).st_size:
                raise KontextError(f"{path} is in the way: move it away")
            lock(descriptor, path, busy)
            if is_at(
                descriptor, path
            ):  # else the one who held it has removed it: nobody else comes to this one
                try:
                    yield
                finally:
                    path.unlink(
                        missing_ok=True
                    )  # before it is released, so that nobody locks a file that goes
                return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked_folder(folder: Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """A context in which no other process has `folder` locked, or with `shared` none that has it for itself alone.

    The lock is the folder's, not its name's: it stays when the folder is renamed.

    Raises:
        KontextError: another process has, in the words of `busy`; or there is no such folder.
    """
    while True:
        if not folder.is_dir():
            raise KontextError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock(descriptor, folder, busy, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if is_at(descriptor, folder):  # else it was replaced meanwhile
                yield
                return
        finally:
            os.close(descriptor)


def lock(descriptor: int, path: Path, busy: str, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KontextError(busy) from None
    except OSError as fault:  # NFS locks no folders, and some file systems nothing
        warnings.warn(
            f"{path} cannot be locked ({fault.strerror}): let no other process write there", stacklevel=1
        )


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
