"""The plans' table and picture."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench.memory import plans


def test_table_picture_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "page.md", tmp_path / "plans.png"
    page.write_text("# Plans\n<!-- plans:begin -->\n<!-- plans:end -->\n")
    words = ["--page", str(page), "--picture", str(picture), "--json", str(tmp_path / "plans.json")]
    assert plans.main(words) == 0
    assert "FLUX.1-Kontext-dev in 12.00 GB on sm_89" in capsys.readouterr().out
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == [
        "card",
        "---",
        "8 GB",
        "12 GB",
        "16 GB",
        "24 GB",
        "32 GB",
    ]
    assert picture.stat().st_size > 10_000


def test_a_card_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert plans.main(["--gpu", "voodoo"]) == 2
    assert "GPU 'voodoo' is not known" in capsys.readouterr().err
