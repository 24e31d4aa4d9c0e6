"""OUT/results.jsonl: a line for each job that is done or has failed, and by it what is left to do.

A picture is at its place before its line is, and no line says of a picture what it is not: a killed run leaves a
picture without a line, which the next run makes again, or half a line, which it cuts off.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..files import fsync, remove_temporaries, write_atomic
from ..locks import locked_folder

RESULTS = "results.jsonl"

Line = dict[str, Any]
"""id, row, digest, path (null of a failed job), seed, seconds, warnings, error (null of one that is done)."""


class Journal:
    """The results in a folder; `open` makes the folder and keeps other processes from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RESULTS
        self.lines: dict[str | int, Line] = {}
        """By `key_of`."""
        self.length = 0
        """Bytes of the file that are whole lines."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator[Journal]:
        """A context in which no other process writes to `folder`.

        Raises:
            KontextError: another one does, it holds something else, or cannot be written.
        """
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise KontextError(f"{folder} is a file: name a folder for the pictures") from None
        except FileNotFoundError:
            raise KontextError(f"{folder.absolute().parent} does not exist: make the folder first") from None
        except OSError as error:
            raise cannot_write(folder, error) from None
        with locked_folder(folder, f"another kontext-batch is writing {folder}"):
            journal = cls(folder)
            try:
                journal.load()
            except OSError as error:
                raise cannot_write(journal.path, error) from None
            yield journal

    def load(self) -> None:
        """Reads the file, and cuts off a last line that is not whole."""
        if not self.path.exists():
            if others := sorted(path.name for path in self.folder.iterdir()):
                raise KontextError(
                    f"{self.folder} holds {others[0]} and no {RESULTS}: name a new folder, or one of kontext-batch"
                )
            self.path.touch()
            fsync(self.folder)
        data = self.path.read_bytes()
        self.length = data.rfind(b"\n") + 1
        for number, text in enumerate(data[: self.length].splitlines(), 1):
            try:
                line = json.loads(text)
                self.lines[key_of(line)] = line
            except (ValueError, KeyError, RecursionError):
                raise KontextError(f"{self.path}: line {number} is no result of kontext-batch") from None
        if self.length < len(data):
            os.truncate(self.path, self.length)
        remove_temporaries(self.folder)

    def made(self, key: str | int, digest: str) -> Line | None:
        """The line of a job that need not be run again: it has failed, or its picture is there."""
        line = self.lines.get(key)
        if line is None or line["digest"] != digest:
            return None
        return line if line["error"] is not None or (self.folder / line["path"]).is_file() else None

    def forget(self, keys: Iterable[str | int]) -> None:
        """Drops lines, with one write of the file if there are any."""
        kept = {key: line for key, line in self.lines.items() if key not in set(keys)}
        if len(kept) == len(self.lines):
            return
        text = b"".join(map(encoded, kept.values()))
        try:
            write_atomic(self.path, text)
            fsync(self.folder)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.lines, self.length = kept, len(text)

    def failed(self) -> list[str | int]:
        return [key for key, line in self.lines.items() if line["error"] is not None]

    def make_room(self, key: str | int, row: int, name: str) -> None:
        """Drops what an earlier run said of this job, of the row when it could not be read, and of a picture of this
        name."""
        others = [other for other, line in self.lines.items() if name and line["path"] == name]
        self.forget([key, row, *others])

    def append(self, line: Line) -> None:
        """Adds a line, which is on the disk when this returns. Raises KontextError; the file is then as before."""
        data = encoded(line)
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.seek(self.length)
                try:
                    if file.write(data) < len(data):
                        raise OSError(28, os.strerror(28))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(self.length)
                    raise
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.length += len(data)
        self.lines[key_of(line)] = line


def key_of(line: Line) -> str | int:
    """A job's id, or the number of a row that has none. Raises ValueError if it is no line of a journal."""
    if not isinstance(line, dict):
        raise ValueError
    key = line["row"] if line["id"] is None else line["id"]
    texts = [key if isinstance(key, str) else "", line["digest"], line["path"] or "", line["error"] or ""]
    if not all(isinstance(each, str) for each in texts) or not isinstance(key, (str, int)):
        raise ValueError
    if (line["path"] is None) == (line["error"] is None):
        raise ValueError
    return key


def encoded(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def cannot_write(path: Path, error: OSError) -> KontextError:
    return KontextError(f"{path} cannot be written: {error.strerror or error}")
