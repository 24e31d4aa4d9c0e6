"""The sheet of edits with two references."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kontext.bench.cli import main
from kontext.bench.references import KINDS


def test_a_sheet_of_all_methods(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["references", str(tiny_bundle), "-o", str(sheet), "--steps", "1"]) == 0
    assert capsys.readouterr().out == f"wrote {sheet}\n"
    with Image.open(sheet) as image:
        assert image.size == (10 + 6 * 138, 20 + len(KINDS) * 158)
    assert main(["references", str(tiny_bundle), "-o", str(tmp_path / "no" / "sheet.png")]) == 2
    assert "make the folder first" in capsys.readouterr().err
