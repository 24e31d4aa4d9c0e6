"""The repository's README is what its results say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench import readme

ROOT = Path(__file__).resolve().parents[2]


def test_readme_is_up_to_date(tmp_path: Path) -> None:
    copy = Path(shutil.copy(ROOT / "README.md", tmp_path))
    assert readme.rewrite(copy, ROOT / "bench/results")
    assert copy.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8"), (
        "run `kontext-bench readme`"
    )
