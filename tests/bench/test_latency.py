"""Latency of a random model: the same picture from both sides, all stages, files written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontext.bench.cli import main
from kontext.bench.latency import STAGES

pytestmark = [
    # The random model's small tokenizer splits a prompt into more tokens than fit.
    pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning"),
]


def test_latency_beside_diffusers(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    file = tmp_path / "latency.json"
    words = ["latency", str(tiny_bundle), "--against", "diffusers", "--checkpoint", str(tiny_checkpoint)]
    words += ["--steps", "2", "--repeat", "2", "--warmup", "0", "--size", "96x64", "--json", str(file)]
    assert main(words) == 0
    result = json.loads(file.read_text())
    assert result["psnr_db"] >= 50
    assert list(result["sides"]["kontext"]) == list(STAGES)
    assert list(result["sides"]["diffusers"]) == [stage for stage in STAGES if stage != "modulation"]
    for side in result["sides"].values():
        assert side["step"]["count"] == 4
        assert len(side["step"]["samples"]) == 2  # one for each edit
        assert side["edit"]["count"] == 2
        assert side["edit"]["median"] > 2 * side["step"]["median"] > 0
    assert all(peak > 2**24 for peak in result["peak_bytes"].values())
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in STAGES)


def test_latency_alone(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["latency", str(tiny_bundle), "--steps", "1", "--repeat", "1", "--warmup", "0", "--size", "64x64"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "ratio" not in shown
    assert "diffusers  " not in shown
