"""Rows as jobs: what to edit, with which options, and what the result is called.

A row's columns are the flags of `kontext-edit` that say what edit to make; their values are read by the same parser.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..command import Parser, local_path
from ..errors import CONTROL, KontextError
from ..runtime.cli import add_edit_flags
from ..runtime.images import check_format
from .journal import RESULTS
from .rows import ID, IMAGE, NAMES, OUTPUT, Row

SUFFIX = ".png"
MOST_NAME = 200
"""Bytes of a result's name; file systems take 255, and a temporary name is longer."""

WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""What a cell of a table says in a column that is a flag without a value."""


class RowParser(Parser):
    """Parses a row's values, as words of a command line."""

    def __init__(self) -> None:
        super().__init__(prog="row", add_help=False, allow_abbrev=False)
        self.add_argument("--image", type=local_path, action="append", default=[])
        self.add_argument("--prompt")
        add_edit_flags(self)
        self.columns = {each.dest: each for each in self._actions if each.dest != argparse.SUPPRESS}

    def error(self, message: str) -> Any:
        found = re.fullmatch(r"argument (?:-\w/)?--([\w-]+): (.*)", message, re.DOTALL)
        raise KontextError(f"{found[1].replace('-', '_')}: {found[2]}" if found else message)


@cache
def row_parser() -> RowParser:
    return RowParser()


def columns() -> list[str]:
    """What a row may have."""
    return [*NAMES, *row_parser().columns]


@dataclass(frozen=True)
class Job:
    row: Row
    id: str | None
    """None of a row that has the id of another."""
    name: str = ""
    """Of its picture's file; "" of a row that cannot be read."""
    options: argparse.Namespace | None = None
    """Of the flags that `columns` has; None of a row that cannot be read."""
    fault: str = ""
    """Why there is nothing to edit."""

    @property
    def key(self) -> str | int:
        """What its result is found by: its id, or the number of its row."""
        return self.row.number if self.id is None else self.id

    @property
    def place(self) -> str:
        """What a message calls it."""
        return self.row.place if self.id in (None, default_id(self.row)) else f"{self.row.place} ({self.id})"


def default_id(row: Row) -> str:
    return f"{row.number:06}"


def make_jobs(rows: Sequence[Row], folder: Path, defaults: Mapping[str, Any]) -> list[Job]:
    """The jobs of rows, in their order.

    Args:
        rows: of a list.
        folder: that relative paths in rows start from.
        defaults: option → value, of rows that have none of their own.
    """
    jobs: list[Job] = []
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    for row in rows:
        identity = None
        try:
            identity = identity_of(row, ids)
            ids[identity] = row.place
            job = make_job(row, identity, folder, defaults)
            if job.name in names:
                raise KontextError(f"its output {job.name} is also that of {names[job.name]}")
        except KontextError as error:
            jobs.append(Job(row, identity, fault=str(error)))
        else:
            names[job.name] = row.place
            jobs.append(job)
    return jobs


def identity_of(row: Row, ids: Mapping[str, str]) -> str:
    """What a result is called; `ids` are those of earlier rows, and where these are. Raises KontextError."""
    identity = text_of(ID, row.values.get(ID, default_id(row)))
    if identity in ids:
        raise KontextError(f"its id {identity} is also that of {ids[identity]}")
    return identity


def make_job(row: Row, identity: str, folder: Path, defaults: Mapping[str, Any]) -> Job:
    """Raises KontextError if the row is wrong."""
    if row.fault:
        raise KontextError(row.fault)
    values = {name.replace("-", "_"): value for name, value in row.values.items() if name != ID}
    name = checked_name(text_of(OUTPUT, values.pop(OUTPUT, f"{identity}{SUFFIX}")))
    words = [word for column, value in values.items() for word in words_of(column, value)]
    options = row_parser().parse_args(words, argparse.Namespace(**defaults))
    if options.prompt is None:
        raise KontextError("it has no prompt")
    for column in values:
        setattr(options, column, resolved(getattr(options, column), folder))
    return Job(row, identity, name, options)


def words_of(column: str, value: object) -> list[str]:
    """A value of a row as words of a command line. Raises KontextError if no column of this kind has such a value."""
    flag = f"--{column.replace('_', '-')}"
    if row_parser().columns[column].nargs == 0:
        given = value if isinstance(value, bool) else WORDS.get(str(value).strip().lower())
        if given is None:
            raise KontextError(f"{column}: it must be true or false, not {value!r:.40}")
        return [flag] if given else []
    if column == IMAGE and isinstance(value, list):
        return [f"{flag}={text_of(column, each)}" for each in value if each is not None]
    if isinstance(value, list) and len(value) == 2:  # a size
        return [f"{flag}={'x'.join(text_of(column, each) for each in value)}"]
    return [f"{flag}={text_of(column, value)}"]


def text_of(column: str, value: object) -> str:
    """A text or a number as a command line has it; tables often store whole numbers as 4.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise KontextError(f"{column}: it must be a text or a number, not {type(value).__name__}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise KontextError(f"{column}: it is not valid Unicode text") from None
    return text


def checked_name(name: str) -> str:
    """`name` if a picture can be called so. Raises KontextError."""
    unsafe = CONTROL.search(name) or re.search(r"[/\\]", name) or name[:1] in ("", ".", " ")
    if unsafe or len(name.encode()) > MOST_NAME or name == RESULTS:
        raise KontextError(f"{name!r:.60} is no name for a picture's file: give the row another output")
    check_format(Path(name))
    return name


def resolved(value: Any, folder: Path) -> Any:
    """A row's value with its relative paths, if it is one or a list of some, from `folder` on."""
    if isinstance(value, list):
        return [resolved(each, folder) for each in value]
    return folder / value if isinstance(value, Path) else value


def job_digest(job: Job, model: str, files: Mapping[Path, str]) -> str:
    """What a result depends on: the SHA-256 of the model, the job's name and options, and its pictures.

    Args:
        job: of a row that could be read, or not.
        model: the digests of the bundle and its LoRAs, in one text.
        files: SHA-256 of the files that its options name, "" of one that cannot be read.
    """

    def plain(value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return {"sha256": files[value]} if isinstance(value, Path) else value

    if job.options is None:
        content: object = [job.fault, str(sorted(job.row.values.items(), key=str))]
    else:  # without what has its default: a later version's new options are not another job
        content = {
            name: plain(value)
            for name, value in vars(job.options).items()
            if value != row_parser().get_default(name)
        }
    text = json.dumps([1, model, job.id, job.name, content], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def files_of(options: argparse.Namespace) -> list[Path]:
    """The files that a job's options name."""
    values = [
        each for value in vars(options).values() for each in (value if isinstance(value, list) else [value])
    ]
    return [each for each in values if isinstance(each, Path)]
