"""One edit on every executor: the same picture, a row for each, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontext.bench.cli import main

pytestmark = [
    # The random model's small tokenizer splits a prompt into more tokens than fit.
    pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning"),
]
FEW = ["--steps", "1", "--repeat", "1", "--warmup", "0", "--size", "64x64"]


def test_every_side_makes_the_same_picture(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    file, sides = (
        tmp_path / "executors.json",
        ["onnxruntime", "openvino-fp32", "diffusers-fp32", "diffusers-bf16"],
    )
    words = ["executors", str(tiny_bundle), "--checkpoint", str(tiny_checkpoint), "--sides", ",".join(sides)]
    assert main([*words, *FEW, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert list(result["sides"]) == sides
    for name, side in result["sides"].items():
        assert side["edit"]["median"] > side["step"]["median"] > 0
        assert (side["psnr_db"] is None) == (name == "onnxruntime")
        assert side["psnr_db"] is None or side["psnr_db"] > (15 if "bf16" in name else 50)
        assert (side["peak_bytes"] is None) == name.startswith("diffusers")
    shown = capsys.readouterr().out
    assert all(name in shown for name in sides)


def test_sides_that_are_not_known(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["executors", str(tiny_bundle), "--sides", "onnxruntime,abacus"]) == 2
    assert "--sides takes onnxruntime, openvino-fp32" in capsys.readouterr().err
