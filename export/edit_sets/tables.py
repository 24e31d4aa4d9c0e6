"""Rows of Parquet and Arrow files, as the hub and the `datasets` library write them; pictures are read when needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ...errors import KontextError
from ...runtime.images import read_picture

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")


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
            if path.is_file():
                return path.read_bytes()
            raise KontextError(f"{self}: its file {value} is missing")
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
        return [
            value for number in range(len(self.groups)) for value in self.part(number, column).to_pylist()
        ]

    def value(self, row: int, column: str) -> Any:
        number = next(i for i, (first, count) in enumerate(self.groups) if first <= row < first + count)
        if self.held[0] != (number, column):
            self.held = (None, None)  # before there are two
            self.held = (number, column), self.part(number, column)
        return self.held[1][row - self.groups[number][0]].as_py()

    def part(self, number: int, column: str) -> pyarrow.ChunkedArray:
        import pyarrow

        try:
            return self.read(number, column)
        except (pyarrow.ArrowException, OSError) as error:
            raise KontextError(
                f"{self.path}: its column {column} cannot be read: {one_line(error)}"
            ) from None


def open_table(path: Path) -> Table:
    """A Parquet file, or an Arrow file or stream.

    Raises:
        KontextError: it is damaged.
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow

    try:
        return open_parquet(path) if path.suffix == ".parquet" else open_arrow(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise KontextError(f"{path} cannot be read: {one_line(error)}") from None


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
    return Table(path, table.column_names, [(0, table.num_rows)], lambda _, column: table.column(column))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
