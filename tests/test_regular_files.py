"""Files from anyone: nothing but regular files is opened, and no more is read or built than a reader takes."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.regular_files import MAX_JSON_VALUES, open_regular, parse_json, read_json, read_regular


@pytest.fixture(params=["FIFO", "link to a FIFO", "device", "link to a device"])
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What opening or reading as a file would never end; nobody writes to the FIFO."""
    path = tmp_path / "file"
    target = Path("/dev/zero") if "device" in request.param else tmp_path / "fifo"
    if not target.exists():
        os.mkfifo(target)
    if "link" in request.param:
        path.symlink_to(target)
        return path
    return target


def test_only_regular_files_are_opened(irregular: Path) -> None:
    with pytest.raises(KontextError, match="is not a regular file"):
        open_regular(irregular)
    with pytest.raises(KontextError, match="is not a regular file"):
        read_json(irregular, 1 << 20, "a manifest")


def test_regular_files_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"
    assert read_regular(tmp_path / "file", 3, "text") == b"abc"


def test_errors_of_the_system_are_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(KontextError, match="is not the name of a file"):
        open_regular(Path("a\0b"))


def test_descriptors_of_what_is_refused_are_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(KontextError):
            open_regular(tmp_path / "fifo")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_read_is_limited_not_what_the_system_says(tmp_path: Path) -> None:
    """A file of /proc has no size before it is read."""
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(KontextError, match=r"file is larger than 10 bytes: not a manifest"):
        read_regular(tmp_path / "file", 10, "a manifest")
    with pytest.raises(KontextError, match=r"is larger than 10 bytes"):
        read_regular(Path("/proc/self/environ"), 10, "a manifest")


def test_values_are_counted_before_they_are_built() -> None:
    """60 MB of empty lists would take over a gigabyte."""
    text = b"[" + b"[]," * 20_000_000 + b"[]]"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 1,000,000 values"):
            parse_json(text)
        assert tracemalloc.get_traced_memory()[1] < len(text) * 2
    finally:
        tracemalloc.stop()


def test_separators_inside_strings_do_not_count() -> None:
    text = '{"a": "' + ",[{" * MAX_JSON_VALUES + '\\"", "b": [1, 2]}'
    assert parse_json(text)["b"] == [1, 2]


def test_characters_of_two_halves_are_read_and_halves_are_not() -> None:
    assert parse_json(b'["\\ud83d\\ude42", "\\\\ud800"]') == ["\N{SLIGHTLY SMILING FACE}", "\\ud800"]
    for text in (b'["\\ud83d"]', b'{"\\uDE42": 1}', '["\ud800"]'):
        with pytest.raises(ValueError, match="not valid Unicode"):
            parse_json(text)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"])
def test_what_is_no_json_says_why_in_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(KontextError, match=r"file is not JSON: .") as caught:
        read_json(tmp_path / "file", 1 << 20, "a manifest")
    assert "\n" not in str(caught.value)
