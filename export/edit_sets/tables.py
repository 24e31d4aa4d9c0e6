"""Rows of Parquet and Arrow files, as the hub and the `datasets` library write them; pictures are read when needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...errors import KontextError, one_line
from ...runtime.images import read_picture

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")

DAMAGE = (ArithmeticError, LookupError, OSError, RuntimeError, SystemError, TypeError, ValueError)
"""What pyarrow raises; its own exceptions are some of these."""


@dataclass(frozen=True)
class Cell:
    """A picture in a row: the bytes of its file, or the file's name beside the table."""

    table: Table
    row: int
    column: str

    def read(self) -> bytes:
        """The bytes of the picture's file. Raises KontextError if there is none."""
        value = self.table.value(self.row, self.column)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if isinstance(value, str) and value:
            path = self.table.path.parent / value
            if is_file(path):
                return path.read_bytes()
            raise KontextError(f"{self}: its file {value[:200]} is missing")
        raise KontextError(f"{self} is empty")

    def picture(self) -> Image.Image:
        """Raises KontextError if it cannot be decoded."""
        return read_picture(io.BytesIO(self.read()), str(self))

    def __str__(self) -> str:
        return f"{self.column} in row {self.row + 1} of {self.table.path.name}"


@dataclass(eq=False)
class Table:
    """A file of rows."""

    path: Path
    columns: Sequence[str]
    groups: Sequence[tuple[int, int]]
    """First row and number of rows of each part that is read at once."""
    read: Callable[[int, str], pyarrow.ChunkedArray]
    """A column of a part."""
    held: tuple[object, Any] = (None, None)
    """Part and column that were read last, and what they hold."""

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.groups)

    def values(self, column: str) -> list[Any]:
        """A column of small values; None for each row if there is no such column."""
        if column not in self.columns:
            return [None] * self.rows
        with self.errors(column):
            parts = [self.read(number, column).to_pylist() for number in range(len(self.groups))]
        return [value for part in parts for value in part]

    def value(self, row: int, column: str) -> Any:
        number = next(i for i, (first, count) in enumerate(self.groups) if first <= row < first + count)
        with self.errors(column):
            if self.held[0] != (number, column):
                self.held = (None, None)  # before there are two
                self.held = (number, column), self.read(number, column)
            return self.held[1][row - self.groups[number][0]].as_py()

    @contextmanager
    def errors(self, column: str) -> Iterator[None]:
        """Makes KontextErrors of what reading damaged values raises, or values that Python has no type for."""
        try:
            yield
        except DAMAGE as error:
            raise KontextError(
                f"{self.path}: its column {column} cannot be read: {one_line(str(error))[:200]}"
            ) from None


def open_table(path: Path) -> Table:
    """A Parquet file, or an Arrow file or stream.

    Raises:
        KontextError: it is damaged.
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow

    try:
        table = open_parquet(path) if path.suffix.lower() == ".parquet" else open_arrow(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise KontextError(f"{path} cannot be read: {one_line(str(error))[:200]}") from None
    if len(set(table.columns)) < len(table.columns):
        raise KontextError(f"{path} has two columns of one name: {', '.join(table.columns)[:200]}")
    return table


def open_parquet(path: Path) -> Table:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    groups = [(sum(counts[:number]), count) for number, count in enumerate(counts)]
    return Table(
        path,
        file.schema_arrow.names,
        groups,
        lambda number, column: file.read_row_group(number, columns=[column]).column(0),
    )


def open_arrow(path: Path) -> Table:
    """As `Dataset.save_to_disk` writes it, a stream; memory-mapped."""
    import pyarrow

    mapped = pyarrow.memory_map(str(path))
    try:
        table = pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        mapped.seek(0)
        table = pyarrow.ipc.open_file(mapped).read_all()
    table.validate(full=True)  # offsets that point outside of the file would end the process
    return Table(path, table.column_names, [(0, table.num_rows)], lambda _, column: table.column(column))


def is_file(path: Path) -> bool:
    """Whether it is a file; what no file system can have, such as a name of 300 letters, is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
