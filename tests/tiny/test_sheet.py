"""The sheet of random edits, from its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kontext.tiny import sheet


def test_the_command_writes_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert sheet.main([str(path), "--per-kind", "1", "--seed", "4"]) == 0
    with Image.open(path) as picture:
        assert picture.width > 200


def test_a_mistyped_flag_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert sheet.main(["sheet.png", "--per-kinds", "1", "--sed", "4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
