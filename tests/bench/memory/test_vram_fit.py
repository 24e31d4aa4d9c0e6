"""Which cards bundles run on: the table, and what is needed to measure it."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.bench import cli  # noqa: E402
from kontext.bench.memory import vram_fit  # noqa: E402


def test_the_table_of_what_fits() -> None:
    rows = [
        {"bundle": "fp8", "card": "12GB", "mode": "resident", "peak": 11_900_000_000, "tiled": True},
        {"bundle": "fp8", "card": "12GB", "mode": "--offload", "peak": 1_500_000_000, "tiled": False},
        {
            "bundle": "fp8",
            "card": "8GB",
            "mode": "resident",
            "refused": "out of GPU memory: transformer takes about 10.16 GB",
        },
    ]
    (table,) = vram_fit.tables({"rows": rows})
    assert table.header == ["card", "fp8, resident", "fp8, --offload"]
    assert table.rows == [["12GB", "11.9 GB (tiles)", "1.5 GB"], ["8GB", "no", ""]]


def test_cards_need_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["vram-fit", str(tmp_path)]) == 2
    assert "run this with `kontext-bench fake-gpu -- kontext-bench vram-fit …`" in capsys.readouterr().err


def test_a_card_without_a_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["vram-fit", str(tmp_path), "--size", "large"]) == 2
    assert capsys.readouterr().err.startswith("error: --size takes WIDTHxHEIGHT")
