"""Folders for temporary files that outlive no process: one that was killed is cleaned up after by the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"kontext-[a-z]+-[0-9a-f]{16}")


@contextlib.contextmanager
def temporary_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder, which is deleted when the context ends; if the process is killed, when another one is made beside
    it: a lock on a folder shows whether its process lives.

    Args:
        purpose: a word in small letters for its name.
        parent: where; None for the system's temporary folder.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    remove_abandoned(parent)
    with contextlib.ExitStack() as stack:
        while True:
            folder = parent / f"kontext-{purpose}-{secrets.token_hex(8)}"
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                stack.enter_context(lock(folder))
                break
            except (BlockingIOError, FileNotFoundError):
                continue  # another process took it for abandoned before it was locked
            except OSError:  # this file system locks no folders: nobody will take it for abandoned
                break
        yield folder


def remove_abandoned(parent: Path) -> None:
    """Deletes this user's temporary folders in `parent` whose processes have ended."""
    for folder in parent.glob("kontext-*"):
        if NAME.fullmatch(folder.name):
            with contextlib.suppress(OSError), lock(folder):
                shutil.rmtree(folder, ignore_errors=True)


def lock(folder: Path) -> contextlib.ExitStack:
    """A context that has this user's `folder` locked until it ends.

    Raises:
        BlockingIOError: another process has it locked.
        FileNotFoundError: it has gone.
        OSError: it is a link, it is another user's, or it cannot be locked.
    """
    with contextlib.ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        stack.callback(os.close, descriptor)
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{folder} is another user's")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(f"{folder} was replaced")
        return stack.pop_all()
