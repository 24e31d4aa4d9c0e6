"""The repository's documents are what its results say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench import readme
from kontext.errors import KontextError

ROOT = Path(__file__).resolve().parents[2]


def test_documents_are_up_to_date(tmp_path: Path) -> None:
    for name in readme.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    rewritten = readme.rewrite_documents(tmp_path, ROOT / "bench/results")
    for name, sections in readme.DOCUMENTS.items():
        assert rewritten[tmp_path / name] == list(sections)
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8"), (
            f"{name}: run `kontext-bench readme`"
        )


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="is not the root of the repository"):
        readme.rewrite_documents(tmp_path, ROOT / "bench/results")


def test_the_serving_plot_is_up_to_date(tmp_path: Path) -> None:
    """The one plot that does not depend on a version of matplotlib."""
    name = "docs/images/serving.svg"
    file, draw = readme.PLOTS[name]
    draw(readme.read_result(ROOT / "bench/results" / file), tmp_path / "serving.svg")
    assert (tmp_path / "serving.svg").read_text() == (ROOT / name).read_text(), "run `kontext-bench readme`"
