"""The repository's documents are what its results say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench import readme

ROOT = Path(__file__).resolve().parents[2]


def test_documents_are_up_to_date(tmp_path: Path) -> None:
    for name in ("README.md", *readme.DOCUMENTS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    assert readme.rewrite_all(tmp_path / "README.md", ROOT / "bench/results")[tmp_path / "README.md"]
    for name in ("README.md", *readme.DOCUMENTS):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8"), (
            f"{name}: run `kontext-bench readme`"
        )
