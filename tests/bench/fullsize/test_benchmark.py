"""The full-size benchmark, on sizes that a test can afford: the same code, every step of it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench import cli
from kontext.bench.fullsize import benchmark as fullsize
from kontext.bench.fullsize import synthetic
from kontext.model.config import KontextConfig


def test_export_and_checks(
    tmp_path: Path, small_config: KontextConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SPARE_BYTES", 0)
    result = fullsize.measure_exports(tmp_path, small_config, ["fp8"], progress=False)
    entry = result["exports"]["fp8"]
    assert entry["peak_bytes"] > 100e6
    assert entry["check"]["graphs"] == 6
    assert entry["load"]["seconds"].keys() == {"modulation", "transformer"}
    assert 0 < entry["blocks"]["relative_error"] < 5e-3
    assert not any(tmp_path.iterdir())
    (table,) = fullsize.tables(result)
    assert "failed" not in table.text()
    assert "fp8" in table.text()


@pytest.mark.parametrize("words", [["--blocks", "19"], ["--blocks", "0,3"], ["--exports", "int3"]])
def test_bad_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fullsize", *words]) == 2
    assert capsys.readouterr().err.startswith("error: --")
