"""Every measurement end to end on a random model: the same pictures from both sides, all stages, files written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from kontext.bench import coldstart, demo, edits, exporting
from kontext.bench.cli import main
from kontext.bench.inputs import picture_and_prompt
from kontext.bench.latency import STAGES
from kontext.bench.measure import ProcessCost, run_process
from kontext.tiny.edits import KINDS

pytestmark = [
    # The random model's little tokenizer needs more tokens for a prompt than it has room for.
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


def test_cold_start_commands_make_their_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    picture, prompt = picture_and_prompt(None, None, (128, 128))
    settings = {"steps": 1, "guidance": 2.5, "seed": 3, "size": (128, 128)}
    commands = coldstart.edit_commands(tiny_bundle, None, tmp_path, picture, prompt, **settings)  # type: ignore[arg-type]
    (words,) = commands.values()
    assert run_process(words).peak_bytes > 2**24
    assert PIL.Image.open(tmp_path / "kontext-edit.png").size == (128, 128)


def test_a_picture_that_is_none(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("missing.png", "text.png"):
        assert main(["latency", str(tiny_bundle), "--image", str(tmp_path / name)]) == 2
        assert f"{name} cannot be read as a picture" in capsys.readouterr().err


def test_export_is_measured_for_each_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pretend(words: list[str]) -> ProcessCost:
        folder = Path(words[-1])
        folder.mkdir()
        (folder / "manifest.json").write_bytes(bytes(100))
        return ProcessCost(seconds=float(len(words)), peak_bytes=2**20)

    monkeypatch.setattr(exporting, "run_process", pretend)
    result = exporting.measure(tmp_path, ["fp32", "fp8"], repeat=2)
    assert list(result["formats"]) == ["fp32", "fp8"]
    assert result["formats"]["fp8"]["bundle_bytes"] == 100
    assert result["formats"]["fp8"]["seconds"]["count"] == 2


def test_held_out_edits_are_the_same_for_every_number_of_steps() -> None:
    first, second = (edits.held_out("move", 3, seed=5) for _ in range(2))
    assert first == second
    assert first != edits.held_out("move", 3, seed=6)


def test_success_table_goes_into_the_document(tiny_bundle: Path, tmp_path: Path) -> None:
    document, file = tmp_path / "docs" / "benchmarks.md", tmp_path / "edits.json"
    document.parent.mkdir()
    document.write_text("<!-- edits:begin -->\n<!-- edits:end -->\nkept\n")
    words = ["edits", str(tiny_bundle), "--steps", "2,1", "-n", "2", "--batch", "2"]
    assert main([*words, "--json", str(file)]) == 0
    assert main(["readme", str(tmp_path), "--results", str(tmp_path)]) == 0
    result = json.loads(file.read_text())
    assert list(result["successes"]) == ["2", "1"]
    for successes in result["successes"].values():
        assert list(successes) == list(KINDS)
        assert all(0 <= count <= 2 for count in successes.values())
    assert "| edit | 2 steps | 1 steps |" in document.read_text()
    assert "| all |" in document.read_text()
    assert document.read_text().endswith("kept\n")
    file.write_text('{"what": "something else"}')
    assert main(["readme", str(tmp_path), "--results", str(tmp_path)]) == 2


def test_groups_weigh_their_kinds_alike() -> None:
    result = {"count": 4, "groups": {"a": "g", "b": "g"}, "successes": {"28": {"a": 4, "b": 1}}}
    (table,) = edits.tables(result)
    assert list(table.rows) == [["g: a", "100%"], ["g: b", "25%"], ["g", "62%"], ["all", "62%"]]


def test_demo_writes_its_pictures_and_says_where(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    told = demo.run(tiny_bundle, tmp_path / "demo", steps=1, seed=0)
    sheet = tmp_path / "demo" / "contact-sheet.png"
    assert str(sheet) in told
    assert "kontext-edit" in told
    assert np.asarray(PIL.Image.open(sheet)).std() > 10
    assert PIL.Image.open(tmp_path / "demo" / "edit-00.png").size == (128, 128)
    width, height = PIL.Image.open(tmp_path / "demo" / "edit-11.png").size
    assert width < height  # the photograph is upright
