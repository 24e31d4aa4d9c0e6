"""Files that appear whole or not at all: written under a temporary name in the same folder, fsynced, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of unfinished files; a killed process leaves them behind."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file that replaces `path` when the block ends and is removed if the block raises.

    It is an empty file in the folder of `path`, to be written or overwritten. A replaced file's permissions are kept;
    a new file gets those of the umask.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full. An existing `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        fsync(temporary)
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | memoryview | str) -> None:
    """Writes `data` to `path`, text as UTF-8. Raises OSError; an existing file is then untouched."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed processes left in `folder` and the folders in it."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Returns once a file's content, or a folder's list of names, is on the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # it cannot be opened there
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
