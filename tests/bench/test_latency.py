"""Latency of a random model: the same picture from all sides, all stages, files written, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kontext.bench.cli import main
from kontext.bench.latency import STAGES

pytestmark = [
    # The random model's small tokenizer splits a prompt into more tokens than fit.
    pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning"),
]
FEW = ["--repeat", "1", "--warmup", "0", "--size", "64x64", "--steps", "1"]


def measure(tmp_path: Path, words: list[str]) -> dict[str, Any]:
    file = tmp_path / "latency.json"
    assert main(["latency", *words, "--json", str(file)]) == 0
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def test_latency_beside_other_sides(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    names = ["diffusers", "diffusers-openvino", "openvino-bf16"]
    words = [str(tiny_bundle), "--against", ",".join(names), "--checkpoint", str(tiny_checkpoint)]
    words += ["--steps", "2", "--repeat", "2", "--warmup", "0", "--size", "96x64"]
    result = measure(tmp_path, words)
    assert list(result["sides"]) == ["kontext", *names]
    for name, stages in result["sides"].items():
        expected = [stage for stage in STAGES if stage != "modulation" or not name.startswith("diffusers")]
        assert list(stages) == expected
        assert stages["step"]["count"] == 4
        assert len(stages["step"]["samples"]) == 2  # one for each edit
        assert stages["edit"]["count"] == 2
        assert stages["edit"]["median"] > 2 * stages["step"]["median"] > 0
        assert result["peak_bytes"][name] > 2**24
    assert list(result["psnr_db"]) == names
    assert all(likeness >= (25 if "bf16" in name else 50) for name, likeness in result["psnr_db"].items())
    shown = capsys.readouterr().out
    assert all(text in shown for text in (*STAGES, *names, "speed, diffusers = 1"))


def test_latency_alone(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", str(tiny_bundle), *FEW]) == 0
    shown = capsys.readouterr().out
    assert "speed, kontext = 1" in shown
    assert not any(line.startswith("diffusers") for line in shown.splitlines())


def test_diffusers_quantized_by_torchao_makes_nearly_the_same_picture(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("torchao", reason="torchao is not installed")
    words = [str(tiny_bundle), "--against", "torchao-int8", "--checkpoint", str(tiny_checkpoint), *FEW]
    assert measure(tmp_path, words)["psnr_db"]["torchao-int8"] >= 25


def test_sides_that_are_not_known(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", str(tiny_bundle), "--against", "diffusers,abacus"]) == 2
    assert "--against takes onnxruntime, openvino-fp32" in capsys.readouterr().err
