"""The edit-fidelity command: nothing is lost against itself, fewer bits lose more, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("skimage")

from kontext.bench import cli
from kontext.bench.edit_fidelity import tables, text
from kontext.tiny.edits import KINDS


def test_the_command(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference beside itself has no error; four bits have more than eight."""
    output = tmp_path / "edit_fidelity.json"
    names = [str(bundles[name]) for name in ("fp32", "int8", "int4")]
    words = ["edit-fidelity", *names, "--reference", names[0], "--steps", "2,1", "-n", "1", "--seed", "3"]
    assert cli.main([*words, "--json", str(output)]) == 0
    result = json.loads(output.read_text())
    shown = capsys.readouterr().out
    assert result["kinds"] == list(KINDS)
    assert result["regions"] == ["scene"] * 9
    assert result["wanted"][KINDS.index("text")]
    assert [len(chain) for chain in result["chains"]] == [5]
    same, int8, int4 = result["bundles"].values()
    for name, perfect in {"psnr": 100, "kept_psnr": 100, "kept_ssim": 1, "latent_distance": 0}.items():
        assert same[name] == perfect
        assert same["beside_seeds"][name]["verdict"] == "equal"
        assert same["beside_seeds"][name]["ratio"] == 0
    assert same["beside_seeds"]["success"]["verdict"] == "equal"
    assert same["source_psnr_each"] == result["reference"]["source_psnr_each"]
    assert 0 < int8["latent_distance"] < int4["latent_distance"]
    assert int4["psnr"] < int8["psnr"] < 100
    assert int4["kept_delta_e"] > int8["kept_delta_e"] > 0
    for values in (int8, int4):
        low, high = values["psnr_interval"]
        assert low < values["psnr"] < high
        assert len(values["psnr_each"]) == 9
        assert [value is None for value in values["kept_psnr_each"]] == [
            kind in ("effect", "style") or share < 0.004
            for kind, share in zip(KINDS, result["kept_shares"], strict=True)
        ]
    few = result["reference"]["fewer_steps"]["1"]
    assert few["psnr"] < 100
    for entry in (result["reference"], result["other_seed"], *result["bundles"].values()):
        assert len(entry["turns"]) == 5
    assert result["bundles"]["int8"]["turns"][4]["psnr"] < 100
    assert ("text_error" in result["targets"]) == (text.why_unreadable() is None)
    for table in tables.tables(result):
        assert table.text() in shown
    chained = "1 chain of up to 5 edits: recolour, add, move, remove, recolour."
    kept = sum(share > 0 for share in result["kept_shares"])
    assert f"9 held-out edits at 2 steps, seed 3. {chained} {kept} of 9 edits have a region" in shown


def test_the_command_on_a_data_set(
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without masks, regions come from what the reference changed; without turns, and without Tesseract, what cannot be
    measured is named."""
    monkeypatch.setattr(text, "TESSERACT", "no-such-program")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    lines = [
        {"file_name": "0.png", "prompt": "change 'A' to 'B'", "category": "Character Reference"},
        {"file_name": "1.png", "prompt": "make it blue", "category": "Local"},
        {"file_name": "2.png", "prompt": "make it red", "category": "Local"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "out.json"
    words = ["edit-fidelity", str(bundles["int4"]), "--reference", str(bundles["fp32"]), "--steps", "1"]
    assert cli.main([*words, "--data", str(tmp_path), "--json", str(output)]) == 0
    shown, said = capsys.readouterr()
    assert "skipped: metadata.jsonl, line 3: " in said
    result = json.loads(output.read_text())
    assert result["regions"] == ["reference"] * 2
    assert result["bundles"]["int4"]["turns"] == []
    assert "success" not in result["reference"]
    assert result["absent_measures"]["text_error"].startswith("no-such-program is not installed")
    assert "drift in chains: not measured (no edits go on with each other's results)" in shown
    assert "characters' DINO: not measured" in shown
    assert f"2 edits of {tmp_path.name} at 1 steps, seed 0. No edits go on" in shown


def test_the_command_on_masks_and_turns(bundles: dict[str, Path], magicbrush: Path, tmp_path: Path) -> None:
    output = tmp_path / "result" / "out.json"
    words = ["edit-fidelity", str(bundles["int4"]), "--reference", str(bundles["fp32"]), "--steps", "1"]
    words += ["--data", str(magicbrush), "-n", "6", "--json", str(output)]
    assert cli.main([*words, "--pictures", str(tmp_path / "result" / "pictures")]) == 0
    result = json.loads(output.read_text())
    assert result["regions"] == ["mask"] * 6
    assert result["kept_shares"] == pytest.approx([1 - 8 * 8 / (24 * 32)] * 6, abs=0.05)
    assert result["chains"] == [["1-1", "1-2", "1-3"]]
    assert [len(turn["psnr_each"]) for turn in result["bundles"]["int4"]["turns"]] == [1, 1, 1]
    assert result["pictures"]["folder"] == "pictures"
    names = result["pictures"]["edits"][5]
    for name in (names["source"], names["reference"], names["outputs"]["int4"]):
        assert (tmp_path / "result" / "pictures" / name).is_file()
    assert cli.main(["report", str(output), "-o", str(tmp_path / "report.html")]) == 0
    assert "What edits keep" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["int4", "--reference", "fp32", "--data", "no/such"], "no/such does not exist"),
        (["int4", "int4", "--reference", "fp32"], "two bundles are named int4"),
        (["nothing", "--reference", "fp32"], "nothing"),
        (["int4", "--reference", "fp32", "-n", "0"], "--count must be at least 1"),
        (["int4", "--reference", "fp32", "--chains", "-1"], "--chains must be at least 0"),
        (["int4", "--reference", "fp32", "--steps", "0"], "--steps takes positive whole numbers"),
        (["int4", "--reference", "fp32", "--seed", "x"], "seed"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["edit-fidelity", *(str(bundles.get(word, word)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_quantized_reference_is_refused_as_in_fidelity(
    bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for name in ("edit-fidelity", "fidelity"):
        words = [name, str(bundles["int4"]), "--reference", str(bundles["int8"]), "-n", "1", "--steps", "1"]
        assert cli.main(words) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].endswith("int8 is quantized: export the reference with --fp32 only\n")
