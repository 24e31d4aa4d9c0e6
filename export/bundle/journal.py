"""The journal of an unfinished export: which files of OUT.partial are whole, and how far the others are on
disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, TypedDict

from ...errors import KontextError


class FileEntry(TypedDict):
    """A finished file."""

    size: int
    sha256: str


class Journal:
    """OUT.partial, opened by one export at a time. Every change is on disk before the method returns."""

    NAME: ClassVar[str] = "export-journal.json"

    def __init__(self, folder: Path, key: object, lock: IO[bytes]) -> None:
        self.folder = folder
        self.key = key
        self.files: dict[str, FileEntry] = {}
        self.progress: dict[str, int] = {}
        self.lock = lock

    @classmethod
    def open(cls, folder: Path, key: object) -> Journal:
        """Goes on with `folder` where an export with the same `key` left it, else begins it anew.

        Raises:
            KontextError: the folder is no export's, or another export is at work in it.
        """
        journal_file = folder / cls.NAME
        if folder.exists() and not journal_file.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise KontextError(f"{folder} is in the way and is not an unfinished export: move it away")
        folder.mkdir(exist_ok=True)
        lock = journal_file.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise KontextError(f"another export is at work in {folder}") from None
        journal = cls(folder, key, lock)
        try:
            saved = json.loads(journal_file.read_text(encoding="utf-8"))
            if saved["key"] == key:
                journal.files = {
                    name: FileEntry(size=int(entry["size"]), sha256=str(entry["sha256"]))
                    for name, entry in saved["files"].items()
                }
                journal.progress = {name: int(count) for name, count in saved["progress"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # new, or torn: nothing is taken over
        if not journal.files and not journal.progress:
            journal.clear()
        journal.save()
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.close()

    def clear(self) -> None:
        """Removes what an export with another key left; the folder is an export's, its journal says so."""
        for path in self.folder.iterdir():
            if path.name != self.NAME:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def discard(self) -> None:
        """Removes OUT.partial."""
        self.clear()
        (self.folder / self.NAME).unlink()
        self.folder.rmdir()

    def save(self) -> None:
        # Rewritten in place, since the lock is on this very file; a torn one only costs the work again.
        data = json.dumps(
            {"key": self.key, "files": self.files, "progress": self.progress}, sort_keys=True
        ).encode()
        self.lock.truncate(0)
        self.lock.write(data)
        self.lock.flush()
        os.fsync(self.lock.fileno())

    def finished(self, file: str, size: int | None = None) -> bool:
        """Whether `file` is whole, of the size recorded, and of `size` where that is known."""
        entry = self.files.get(file)
        path = self.folder / file
        if entry is None or not path.is_file() or path.stat().st_size != entry["size"]:
            return False
        return size is None or entry["size"] == size

    def synced(self, file: str) -> int:
        """Bytes of the unfinished `file` that are known to be on disk."""
        path = self.folder / file
        count = self.progress.get(file, 0)
        return count if path.is_file() and path.stat().st_size >= count else 0

    def mark(self, file: str, position: int) -> None:
        self.progress[file] = position
        self.save()

    def finish(self, file: str, size: int, digest: str) -> None:
        self.progress.pop(file, None)
        self.files[file] = {"size": size, "sha256": digest}
        self.save()

    def add(self, file: str, data: bytes) -> None:
        """Writes a small file whole."""
        write_atomic(self.folder / file, data)
        self.finish(file, len(data), hashlib.sha256(data).hexdigest())


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
