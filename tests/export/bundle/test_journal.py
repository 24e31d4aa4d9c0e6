"""Unfinished exports: what is resumed, what is cleaned up and what is discarded."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.export.bundle.journal import Journal


def interrupted(folder: Path, key: object, fault: BaseException) -> None:
    """An export that finishes one file and then fails."""

    def work() -> None:
        with Journal.open(folder, key) as journal:
            journal.add("graphs/a.onnx", b"finished")
            raise fault

    with pytest.raises(type(fault)):
        work()


def test_finished_files_are_resumed_and_temporary_ones_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    interrupted(folder, {"recipe": "x"}, KeyboardInterrupt())
    (folder / "graphs" / ".b.onnx.0123abcd.tmp").write_bytes(b"torn")
    with Journal.open(folder, {"recipe": "x"}) as journal:
        assert journal.finished("graphs/a.onnx")
        assert not journal.finished("graphs/a.onnx", 3)
        assert [path.name for path in (folder / "graphs").iterdir()] == ["a.onnx"]


def test_another_key_starts_over(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    interrupted(folder, {"recipe": "x"}, KeyboardInterrupt())
    with Journal.open(folder, {"recipe": "y"}) as journal:
        assert not journal.finished("graphs/a.onnx")
        assert [path.name for path in folder.iterdir()] == [Journal.NAME]


def test_an_error_of_the_users_discards_it(tmp_path: Path) -> None:
    interrupted(tmp_path / "out.partial", {}, KontextError("a damaged weight"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_disk_keeps_it(tmp_path: Path) -> None:
    interrupted(tmp_path / "out.partial", {}, OSError(28, "No space left on device"))
    with Journal.open(tmp_path / "out.partial", {}) as journal:
        assert journal.finished("graphs/a.onnx")
