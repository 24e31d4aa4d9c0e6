"""Lists of jobs: JSONL, CSV, Parquet, or a folder of pictures, as rows of values by column.

A row that cannot be read has a fault and no values; the others go on.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import KontextError
from ..regular_files import parse_json, read_regular
from ..runtime.picture_formats import PLUGINS

MAX_BYTES = 1 << 30
"""Of a list; a row has a few hundred."""

SEPARATORS = {".csv": ",", ".tsv": "\t"}
IMAGE, PROMPT, ID, OUTPUT = "image", "prompt", "id", "output"
NAMES = (ID, OUTPUT)
"""Columns that say what a result is called."""


@dataclass(frozen=True)
class Row:
    number: int
    """Its line in the file, counted from 1; in Parquet and folders, the row or the picture."""
    kind: str
    """What the number counts: line, row or picture."""
    values: dict[str, Any] = field(default_factory=dict)
    """Column → value as the file has it. What is not given is left out."""
    fault: str = ""
    """Why it could not be read."""

    @property
    def place(self) -> str:
        return f"{self.kind} {self.number}"


def read_rows(jobs: Path, columns: Collection[str]) -> list[Row]:
    """The rows of a list of jobs, or a row for each picture of a folder.

    Args:
        jobs: a folder, or a file that ends in .jsonl, .ndjson, .csv, .tsv or .parquet.
        columns: that a row may have.

    Raises:
        KontextError: it cannot be read, holds nothing, or is a table with another column.
    """
    suffix = jobs.suffix.lower()
    try:
        if jobs.is_dir():
            rows = folder_rows(jobs)
        elif suffix in (".jsonl", ".ndjson"):
            rows = list(json_rows(read_regular(jobs, MAX_BYTES, "a list of jobs"), columns))
        elif suffix in SEPARATORS:
            rows = csv_rows(jobs, read_regular(jobs, MAX_BYTES, "a list of jobs"), columns)
        elif suffix == ".parquet":
            rows = list(parquet_rows(jobs, columns))
        else:
            jobs.open("rb").close()
            raise KontextError(f"{jobs} must be a folder, or end in .jsonl, .csv, .tsv or .parquet")
    except FileNotFoundError:
        raise KontextError(f"{jobs} does not exist") from None
    except OSError as error:
        raise KontextError(f"{jobs} cannot be read: {error.strerror or error}") from None
    if not rows:
        raise KontextError(f"{jobs} holds no jobs")
    return rows


def json_rows(data: bytes, columns: Collection[str]) -> Iterator[Row]:
    """An object on each line."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = parse_json(line, object_pairs_hook=each_once, parse_constant=no_number)
            if not isinstance(values, dict):
                raise ValueError("it must be an object, such as {…}")
        except json.JSONDecodeError as error:
            yield Row(number, "line", fault=f"it is not JSON: {error.msg} at column {error.colno}")
        except ValueError as error:
            yield Row(number, "line", fault=str(error))
        else:
            unknown = fault_of(values, columns)
            given = {key: value for key, value in values.items() if value is not None}
            yield Row(number, "line", fault=unknown) if unknown else Row(number, "line", given)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has a key twice")
    return values


def no_number(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def fault_of(names: Iterable[str], columns: Collection[str]) -> str:
    """What to say of columns that are none; "" of others."""
    unknown = [name for name in names if name.replace("-", "_") not in columns]
    if not unknown:
        return ""
    return f"there is no column {unknown[0]!r:.60}: a job may have {', '.join(columns)}"


def csv_rows(jobs: Path, data: bytes, columns: Collection[str]) -> list[Row]:
    """A header and a row on each line; empty cells are not given. Several columns `image` are several references."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise KontextError(f"{jobs}: line {line} is not UTF-8: save the table as UTF-8") from None
    first = text.partition("\n")[0]
    separator = max((SEPARATORS[jobs.suffix.lower()], ";"), key=first.count)  # spreadsheets write either
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    header: list[str] = []
    number = 1
    try:
        for cells in reader:
            if not any(cells):
                pass
            elif not header:
                header = [cell.strip() for cell in cells]
                check_header(jobs, header, columns)
            else:
                rows.append(csv_row(number, header, cells))
            number = reader.line_num + 1
    except csv.Error as error:
        raise KontextError(f"{jobs}: line {number} cannot be read as CSV: {error}") from None
    return rows


def check_header(jobs: Path, header: list[str], columns: Collection[str]) -> None:
    """Raises KontextError for a column that is none, or comes twice."""
    if unknown := fault_of(header, columns):
        raise KontextError(f"{jobs}: {unknown}")
    twice = [name for name in header if header.count(name) > 1 and name != IMAGE]
    if twice:
        raise KontextError(f"{jobs} has the column {twice[0]} twice")


def csv_row(number: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(number, "line", fault=f"it has {len(cells)} cells, and the header {len(header)}")
    given = [(name, cell) for name, cell in zip(header, cells, strict=True) if cell]
    values: dict[str, Any] = {name: cell for name, cell in given if name != IMAGE}
    if images := [cell for name, cell in given if name == IMAGE]:
        values[IMAGE] = images
    return Row(number, "line", values)


def parquet_rows(jobs: Path, columns: Collection[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    jobs.open("rb").close()
    try:
        with pyarrow.parquet.ParquetFile(jobs) as file:
            check_header(jobs, file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(
                        number, "row", {key: value for key, value in values.items() if value is not None}
                    )
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise KontextError(f"{jobs} cannot be read as Parquet: {error}") from None


def folder_rows(folder: Path) -> list[Row]:
    """A row for each picture in a folder, by the suffixes of its files, with the picture's name for a name.

    Two pictures that differ by their suffix only keep it in the names of their results.
    """
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in PLUGINS} | {".heic", ".heif"}
    pictures = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    stems = [path.stem for path in pictures]
    return [
        Row(
            number,
            "picture",
            {IMAGE: path.name, ID: path.stem if stems.count(path.stem) == 1 else path.name},
        )
        for number, path in enumerate(pictures, 1)
    ]
