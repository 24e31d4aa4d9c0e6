"""--fit and --recipe: plans without an export, exports by a plan or recipe, and flags that cannot be combined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from kontext.export.cli.main import main


def fail(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_plan_only_writes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        str(tiny_checkpoint),
        "--fit",
        "1GB",
        "--gpu",
        "cpu",
        "--plan-only",
        "-o",
        str(tmp_path / "bundle"),
    ]
    assert main(words) == 0
    assert (
        "kontext-random in 1.00 GB on cpu: an edit at 128x128 with one reference" in capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fast_trace")
def test_a_checkpoint_is_opened_once(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kontext.model.checkpoint import Checkpoint, Origin

    opened = []
    original = Checkpoint.open

    def count(origin: Origin) -> Checkpoint:
        opened.append(origin)
        return original(origin)

    monkeypatch.setattr(Checkpoint, "open", count)
    words = [str(tiny_checkpoint), "--fit", "4GB", "--gpu", "cpu", "--fp32", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "bundle")]) == 0
    assert len(opened) == 1


@pytest.mark.usefixtures("fast_trace")
def test_an_export_follows_its_plan(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from PIL import Image

    from kontext.quant.memory import CPU
    from kontext.runtime import Pipeline

    words = [str(tiny_checkpoint), "--gpu", "cpu", "--fp32"]
    error = fail([*words, "--fit", "1MB", "--plan-only"], capsys)
    smallest = round(float(error.rsplit(" is ", 1)[1].strip().removesuffix("GB")) * 1e9)
    assert smallest > CPU.overhead
    folder = tmp_path / "bundle"
    assert main([*words, "--fit", f"{smallest + 10_000_000}B", "-o", str(folder)]) == 0
    assert "expected of the velocity" in capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["plan"]["peak"] <= smallest + 10_000_000
    pipe = Pipeline.load(folder)
    assert pipe.low_memory  # it was planned so
    picture = Image.fromarray(np.zeros((128, 128, 3), np.uint8))
    assert pipe.edit(picture, "make it red", steps=1).size == (128, 128)


@pytest.mark.usefixtures("fast_trace")
def test_an_export_follows_a_recipe(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.json"
    rules = [
        {"network": "transformer", "weight": "*linear1*", "format": "int4", "rank": 4},
        {"network": "transformer", "weight": "*", "format": "int8"},
    ]
    recipe.write_text(json.dumps({"rules": rules}))
    folder = tmp_path / "bundle"
    assert main([str(tiny_checkpoint), "--recipe", str(recipe), "-o", str(folder), "--quiet"]) == 0
    layers = json.loads((folder / "manifest.json").read_text())["precision"]["layers"]
    assert layers["transformer"]["single_blocks.0.linear1.weight"] == {"format": "int4", "rank": 4}
    assert layers["transformer"]["single_blocks.0.linear2.weight"] == "int8"
    assert set(layers) == {"transformer"}
    recipe.write_text(json.dumps({"rules": [{"weight": "*linear9*", "format": "int8"}]}))
    error = fail([str(tiny_checkpoint), "--recipe", str(recipe), "-o", str(tmp_path / "other")], capsys)
    assert "no layer of this model matches network '*', weight '*linear9*'" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--fit", "12GB", "--fp8"],
            "--fit cannot be combined with --fp8: it decides every layer's format",
        ),
        (["--recipe", "r.json", "--int4"], "--recipe cannot be combined with --int4"),
        (["--fit", "12GB", "--recipe", "r.json"], "--fit cannot be combined with --recipe"),
        (
            ["--fit", "12GB", "--rank", "16"],
            "--fit cannot be combined with --rank: it decides every layer's rank",
        ),
        (["--plan-only"], "--plan-only only applies with --fit"),
        (["--gpu", "cpu"], "--gpu only applies with --fit"),
        (["--references", "2"], "--references only applies with --fit"),
        (["--fit", "plenty", "--plan-only"], "'plenty' is not a size of memory: write 12GB"),
        (["--fit", "12", "--plan-only"], "--fit 12: say 12GB or 12GiB"),
        (["--fit", "0GB", "--plan-only"], "a memory budget must be more than 0, not 0GB"),
        (["--fit=-12GB", "--plan-only"], "'-12GB' is not a size of memory"),
        (["--fit", "12GB", "--gpu", "rtx 9999", "--plan-only"], "unknown GPU 'rtx 9999'"),
        (
            ["--fit", "12GB", "--gpu", "sm_86", "--formats", "fp8", "--plan-only"],
            "fp8 weights do not run on sm_86",
        ),
        (["--fit", "12GB", "--formats", "int7", "--plan-only"], "'int7' is not a number format"),
        (["--fit", "12GB", "--size", "big", "--plan-only"], "'big' is not WIDTHxHEIGHT"),
        (["--fit", "12GB", "--size", "100x128", "--plan-only"], "both sides must be multiples of 16"),
        (["--fit", "12GB", "--sensitivity", "none.json", "--plan-only"], "cannot read none.json"),
        (
            ["--fit", "12GB", "--batch", "0", "--plan-only"],
            "argument --batch: '0' is not a whole number from 1 to 64",
        ),
        (["--fit", "10MB", "--plan-only"], "the smallest budget for"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    output = [] if "--plan-only" in words else ["-o", str(tmp_path / "bundle")]
    assert message in fail([str(tiny_checkpoint), *words, *output], capsys)
    assert not list(tmp_path.iterdir())
