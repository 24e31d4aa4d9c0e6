"""The journal of an unfinished export: which files of OUT.partial are finished, and how many bytes of the others are
on disk."""

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
from ...files import remove_temporaries, write_atomic


class FinishedFile(TypedDict):
    """Size in bytes and SHA-256 (hexadecimal) of a finished file."""

    size: int
    sha256: str


class Journal:
    """OUT.partial, locked for one export at a time. Every change is on disk before the method returns.

    A context: a KontextError inside it discards OUT.partial, since the checkpoint or the flags have to change and
    nothing made so far would fit. After any other exception the same export resumes from what is finished.
    """

    NAME: ClassVar[str] = "export-journal.json"

    def __init__(self, folder: Path, key: object, lock: IO[bytes]) -> None:
        self.folder = folder
        self.key = key
        self.files: dict[str, FinishedFile] = {}
        self.progress: dict[str, int] = {}
        self.lock = lock

    @classmethod
    def open(cls, folder: Path, key: object) -> Journal:
        """Resumes the export in `folder` if it has the same `key`, else empties the folder.

        Raises:
            KontextError: the folder is not an export's, or another export is writing it.
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
            raise KontextError(f"another export is writing {folder}") from None
        journal = cls(folder, key, lock)
        try:
            saved = json.loads(journal_file.read_text(encoding="utf-8"))
            if saved["key"] == key:
                journal.files = {
                    name: FinishedFile(size=int(entry["size"]), sha256=str(entry["sha256"]))
                    for name, entry in saved["files"].items()
                }
                journal.progress = {name: int(count) for name, count in saved["progress"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # new, or torn: start over
        if journal.files or journal.progress:
            remove_temporaries(folder)
        else:
            journal.clear()
        journal.save()
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, KontextError):
            self.discard()
        self.lock.close()

    def clear(self) -> None:
        """Empties the folder but for the journal, which marks it as an export's."""
        for path in self.folder.iterdir():
            if path.name != self.NAME:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def discard(self) -> None:
        """Removes OUT.partial."""
        self.clear()
        (self.folder / self.NAME).unlink()
        self.folder.rmdir()

    def save(self) -> None:
        # Rewritten in place, since the lock is on this very file; a torn journal only costs the work again.
        data = json.dumps(
            {"key": self.key, "files": self.files, "progress": self.progress}, sort_keys=True
        ).encode()
        self.lock.truncate(0)
        self.lock.write(data)
        self.lock.flush()
        os.fsync(self.lock.fileno())

    def finished(self, file: str, size: int | None = None) -> bool:
        """Whether `file` is finished and still has its recorded size, which must be `size` unless that is None."""
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
        """Records that the first `position` bytes of `file` are on disk."""
        self.progress[file] = position
        self.save()

    def finish(self, file: str, size: int, digest: str) -> None:
        """Records that `file` is finished; `digest` is its SHA-256."""
        self.progress.pop(file, None)
        self.files[file] = {"size": size, "sha256": digest}
        self.save()

    def add(self, file: str, data: bytes) -> None:
        """Writes a small file in one piece, and its folder if there is none."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        self.finish(file, len(data), hashlib.sha256(data).hexdigest())
