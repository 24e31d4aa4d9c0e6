"""The full-size engine benchmark, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")

from kontext.bench import cli
from kontext.bench.fullsize import engines
from kontext.model.checkpoint import Checkpoint


def test_an_engine_is_built_of_a_graph_without_weights(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    monkeypatch.setattr(engines, "full_size", lambda blocks: config)
    words = [
        "engines",
        "--graphs",
        "modulation",
        "--formats",
        "bf16-fp8",
        "--target",
        "sm89",
        "--json",
        str(tmp_path / "r"),
    ]
    assert cli.main(words) == 0
    assert "modulation bf16-fp8" in capsys.readouterr().out
    result = json.loads((tmp_path / "r").read_text())
    (entry,) = result["engines"]
    assert result["blocks"] == [1, 2]
    assert entry["profiles"] == ["steps"]
    assert 0 < entry["size"] < entry["peak_bytes"]
    monkeypatch.setattr(
        engines, "write_graph", lambda folder, *_: (folder / "modulation.onnx").write_bytes(b"x")
    )
    assert cli.main([*words, "--limit", "0"]) == 0
    assert (
        "cannot be built: the compiler ended with"
        in json.loads((tmp_path / "r").read_text())["engines"][0]["fault"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--graphs", "dreams"], "--graphs takes text_encoder,"),
        (["--target", "voodoo"], "'voodoo' is not a GPU architecture"),
        (["--blocks", "many"], "--blocks takes two numbers"),
    ],
)
def test_wrong_flags(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
