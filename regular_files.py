"""Files that someone else wrote: opened only if they are regular, and read only up to what their reader takes.

A bundle or checkpoint from anywhere may hold a FIFO, which blocks whoever opens it, a link to a device without end, or
60 MB of JSON that become gigabytes of Python objects.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from .errors import KontextError

MAX_JSON_BYTES = 32 << 20
"""Of files that a checkpoint's components are described by. CLIP's vocabulary takes 1 MB, an index of shards less."""

MAX_JSON_VALUES = 1_000_000
"""In any file. A tokenizer of 250,000 pieces has 750,000; each takes 60 to 100 bytes once it is read."""

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""Half of a character outside the first 65,536. JSON can write one alone; no file can be named or printed with it."""

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

OPENED = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""O_NONBLOCK: opening a FIFO waits for a writer otherwise. It changes nothing for a regular file."""


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a file for reading. What is checked is what was opened: a name can change its file in between.

    Raises:
        KontextError: it is no regular file, nor a link to one.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, OPENED)
    except ValueError as error:  # a NUL in its name
        raise KontextError(f"{path!r} is not the name of a file: {error}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise KontextError(f"{path} is not a regular file")
        return io.BufferedReader(io.FileIO(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int, kind: str) -> bytes:
    """The bytes of a file; never more than `most` are read.

    Args:
        path: the file.
        most: bytes that a file of this kind may have.
        kind: what it should be, for the message: "a manifest".

    Raises:
        KontextError: it is no regular file, or larger.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        size = f"{most >> 20} MiB" if most >> 20 else f"{most} bytes"
        raise KontextError(f"{path} is larger than {size}: not {kind}")
    return data


def parse_json(data: str | bytes, **options: Any) -> Any:
    """The value of JSON of at most `MAX_JSON_VALUES` values, counted before any is built. Strings are Unicode text.

    Args:
        data: the text; bytes are UTF-8.
        options: of `json.loads`.

    Raises:
        ValueError: it is no JSON, or has more values; says what is wrong.
    """
    text = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    if separators(text) >= MAX_JSON_VALUES and separators(STRING.sub(b"", text)) >= MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values")
    try:
        value = json.loads(data if isinstance(data, str) else data.decode("utf-8"), **options)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise ValueError("a string in it is not valid Unicode text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def separators(text: bytes) -> int:
    """What begins a value, or stands between two: a value less than there are, or more if strings hold some."""
    return sum(map(text.count, (b",", b"[", b"{")))


def read_json(path: Path, most: int, kind: str) -> Any:
    """The value of a JSON file; the arguments and OSError are `read_regular`'s.

    Raises:
        KontextError: it is no regular file, too large, or no JSON.
    """
    try:
        return parse_json(read_regular(path, most, kind))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise KontextError(f"{path} is not JSON: {error}") from None
