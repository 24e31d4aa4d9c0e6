"""The journal of an unfinished export: which files of OUT.partial are finished, and how many bytes of the others are
on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import TypedDict

from ...errors import KontextError
from ...files import remove_temporaries, write_atomic
from .folder_kind import JOURNAL, Kind, files_in, is_temporary
from .output_folder import is_unsettled, remove_journal


class FinishedFile(TypedDict):
    """Size in bytes and SHA-256 (hexadecimal) of a finished file."""

    size: int
    sha256: str


class Journal:
    """The journal in `folder`, which is OUT.partial. Every change is on disk before the method returns.

    A context: a KontextError inside it discards OUT.partial, since the checkpoint or the flags have to change and
    nothing made so far would fit. After any other exception the same export resumes from what is finished.

    Only one process may have it: `output_folder.locked_output`.
    """

    def __init__(self, folder: Path, key: object, kind: Kind) -> None:
        self.folder = folder
        self.key = key
        self.kind = kind
        self.files: dict[str, FinishedFile] = {}
        self.progress: dict[str, int] = {}

    @classmethod
    def open(cls, folder: Path, key: object, kind: Kind) -> Journal:
        """Resumes the export in `folder` if it has the same `key`, else empties the folder.

        Raises:
            KontextError: the folder is not an export's, or holds other files too.
        """
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise KontextError(f"{folder} is in the way and is not an unfinished export: move it away")
        folder.mkdir(exist_ok=True)
        if not (folder / JOURNAL).is_file() and not all(map(is_temporary, files_in(folder))):
            raise KontextError(f"{folder} is in the way and is not an unfinished export: move it away")
        for name in kind.strangers(folder):
            raise KontextError(f"{folder / name} is not part of the unfinished {kind.name}: move it away")
        journal = cls(folder, key, kind)
        journal.load()
        if journal.files or journal.progress:
            remove_temporaries(folder)
        else:
            journal.clear()
        journal.save()
        return journal

    @classmethod
    def of_published(cls, output: Path, key: object, kind: Kind) -> Journal | None:
        """The journal of an OUT whose export was killed between its renames and the end, which is made up for here.

        None if there is no such OUT, or it was exported with another `key`.
        """
        if not is_unsettled(output, kind):
            return None
        journal = cls(output, key, kind)
        same = journal.load()
        remove_journal(output)
        return journal if same else None

    def load(self) -> bool:
        """Takes over what the file says; False, and nothing, if it has another key or is torn."""
        try:
            saved = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
            if saved["key"] != self.key:
                return False
            files = {
                name: FinishedFile(size=int(entry["size"]), sha256=str(entry["sha256"]))
                for name, entry in saved["files"].items()
            }
            progress = {name: int(count) for name, count in saved["progress"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        self.files, self.progress = files, progress
        return True

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, KontextError):
            self.discard()

    def clear(self) -> None:
        """Empties the folder but for the journal, which marks it as an export's."""
        self.kind.clear(self.folder, keep=(JOURNAL,))

    def discard(self) -> None:
        """Removes OUT.partial."""
        self.clear()
        self.kind.remove(self.folder)

    def save(self) -> None:
        data = {"key": self.key, "files": self.files, "progress": self.progress}
        write_atomic(self.folder / JOURNAL, json.dumps(data, sort_keys=True))

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
