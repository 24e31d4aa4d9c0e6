"""The fidelity benchmark: nothing is lost against itself, fewer bits lose more, and bad input is one line."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench import cli
from kontext.bench.cases import scene_cases
from kontext.bench.fidelity import peers, picture_metrics
from kontext.bench.fidelity.benchmark import batches_of, measure_fidelity, reference_runs, runs_of
from kontext.bench.fidelity.sides import ComparedBundle
from kontext.bench.pictures import read_named
from kontext.decibels import psnr
from kontext.runtime import Pipeline


def test_fewer_bits_lose_more(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flip", "ssimulacra2", "lpips", "clip", "dino"):  # those have tests of their own
        monkeypatch.delitem(picture_metrics.METRICS, name)
    result = measure_fidelity(bundles["fp32"], list(bundles.values()), scene_cases(1, 0), steps=2, seed=0)
    same, fp8, int8, int4 = (result["bundles"][path.name] for path in bundles.values())
    on_cpu = result["bundles"]["int4-on-cpu"]
    assert [each["scheme"] for each in (same, fp8, int8, int4, on_cpu)] == [
        *("not quantized", "W8A16", "W8A8 per token", "W4A16", "W4A8")
    ]
    assert on_cpu["noise_each"] != int4["noise_each"]  # inputs were rounded
    assert on_cpu["velocity_snr"] == pytest.approx(int4["velocity_snr"], abs=1.5)
    inputs, weights = (result["floors"][f"int8-{part}-alone"] for part in ("inputs", "weights"))
    assert int8["velocity_snr"] < min(inputs["velocity_snr"], weights["velocity_snr"]) + 0.5
    # Both errors are unrelated, so their energies add up.
    both = sum(10 ** (-each["velocity_snr"] / 10) for each in (inputs, weights))
    assert int8["velocity_snr"] == pytest.approx(-10 * math.log10(both), abs=1)
    assert fp8["places"] == {"velocity_snr": "1", "psnr": "1"}
    low, high = fp8["intervals"]["velocity_snr"]
    assert low < fp8["velocity_snr"] < high
    assert len(fp8["noise_each"]) == len(result["reference"]["signal_each"]) == result["edits"]
    assert same["velocity_snr"] == 200
    assert same["psnr"] == 100
    assert same["ssim"] == same["ms_ssim"] == 1
    assert same["latent_distance_steps"] == [0, 0]
    assert same["lost_edits"] == 0
    assert 20 < fp8["velocity_snr"] < int8["velocity_snr"] < 60
    assert 5 < int4["velocity_snr"] < fp8["velocity_snr"] - 6
    assert int4["psnr"] < fp8["psnr"] < 100
    assert int4["bits_per_weight_files"] < fp8["bits_per_weight_files"] < same["bits_per_weight_files"]
    assert same["bits_per_weight"] == 32
    assert len(fp8["velocity_snr_steps"]) == 2
    assert len(fp8["psnr_each"]) == len(fp8["success_each"]) == len(result["kinds"]) == result["edits"]


def test_the_command_with_peers(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer with the bits of our INT8 comes close to it, on the same edits and layers."""
    pytest.importorskip("gguf")
    output = tmp_path / "fidelity.json"
    words = ["fidelity", str(bundles["int4"]), "--reference", str(bundles["fp32"]), "--steps", "1", "-n", "1"]
    assert cli.main([*words, "--peers", "gguf-q8_0,gguf-q4_0", "--json", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "velocity SNR [dB]" in shown
    assert shown.count("not measured") == len(json.loads(output.read_text())["absent_measures"])
    result = json.loads(output.read_text())
    assert result["bundles"]["int4"]["precision"] == "int4"
    eight, four = result["peers"]["gguf-q8_0"], result["peers"]["gguf-q4_0"]
    assert (eight["bits_per_weight"], four["bits_per_weight"]) == (8.5, 4.5)
    assert 30 < eight["velocity_snr"] < 60
    assert 5 < four["velocity_snr"] < eight["velocity_snr"] - 12
    assert four["library"].startswith("gguf ")


@pytest.mark.parametrize(("flags", "code"), [(["--strict"], 1), ([], 0)])
def test_skipped_peers_are_named_and_strictly_an_exit_code(
    flags: list[str],
    code: int,
    bundles: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GGML_LIBRARY", raising=False)
    kept = {name: peers.ALL_PEERS[name] for name in ("gguf-q4_0", "gguf-q4_k")}
    monkeypatch.setattr(peers, "ALL_PEERS", kept)
    for name in ("flip", "ssimulacra2", "lpips", "clip", "dino"):
        monkeypatch.delitem(picture_metrics.METRICS, name)
    words = ["fidelity", str(bundles["int4"]), "--reference", str(bundles["fp32"]), "--steps", "1", "-n", "1"]
    assert cli.main([*words, "--peers", "all", *flags]) == code
    shown, said = capsys.readouterr()
    assert "gguf-q4_0" in shown
    assert "gguf-q4_k" not in shown
    assert said.count("skipped: gguf-q4_k needs ggml's library: set GGML_LIBRARY") == 1


def test_the_command_on_a_data_set(
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("flip", "ssimulacra2", "lpips", "clip", "dino"):
        monkeypatch.delitem(picture_metrics.METRICS, name)
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 9, 9)).save(tmp_path / f"{number}.png")
    lines = [
        {"file_name": f"{n}.png", "prompt": "make it blue", "category": "abc"[n // 2], "key": f"k{n}"}
        for n in range(6)
    ]
    (tmp_path / "5.png").write_bytes(b"no picture")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, [*lines, {}])))
    output = tmp_path / "out.json"
    words = ["fidelity", str(bundles["int8"]), "--reference", str(bundles["fp32"]), "--steps", "1"]
    words += ["--pictures", str(tmp_path / "pictures")]
    assert cli.main([*words, "--data", str(tmp_path), "-n", "6", "--json", str(output)]) == 0
    shown, said = capsys.readouterr()
    assert [line.partition(": ")[0] for line in said.splitlines()] == ["skipped"] * 2
    result = json.loads(output.read_text())
    assert result["keys"] == ["k0", "k1", "k2", "k3", "k4"]
    assert result["kinds"] == ["a", "a", "b", "b", "c"]
    assert result["reference"]["success"] is None
    assert result["prompts"] == ["make it blue"] * 5
    entry = result["bundles"]["int8"]
    assert result["pictures"]["folder"] == "pictures"
    for each, error in zip(result["pictures"]["edits"], entry["psnr_each"], strict=True):
        assert read_named(tmp_path / "pictures", each["source"]).size == (64, 64)
        ours, reference = (
            read_named(tmp_path / "pictures", name) for name in (each["outputs"]["int8"], each["reference"])
        )
        assert psnr(ours, reference) == pytest.approx(error, abs=0.01)
    assert entry["lost_edits"] is None
    assert 20 < entry["velocity_snr"] < 60
    (table,) = [part for part in shown.split("\n\n") if part.startswith("PSNR [dB] of edits")]
    assert [line.split()[:2] for line in table.splitlines()[2:]] == [["a", "2"], ["b", "2"], ["c", "1"]]
    assert f"5 edits of {tmp_path.name} at 1 steps against {bundles['fp32'].name}. Bits" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["int4", "--reference", "fp32", "--data", "no/such"], "no/such does not exist"),
        (["int4", "--reference", "fp8"], "is quantized: export the reference with --fp32 only"),
        (["int4", "int4", "--reference", "fp32"], "two bundles are named int4"),
        (["fp32", "--reference", "fp32", "--peers", "gguf-q8_0"], "--peers needs a quantized bundle"),
        (
            ["int4", "--reference", "fp32", "--peers", "gguf-q9"],
            "--peers takes all, or torchao-fp8,",
        ),
        (["int4", "--reference", "fp32", "--peers", "gguf-q4_k"], "gguf-q4_k needs ggml's library"),
        (
            ["int4", "--reference", "fp32", "--steps", "1000000000"],
            "of memory for the reference's velocities",
        ),
        (
            ["int4", "--reference", "fp32", "--peers", "gguf-iq4_nl-imatrix"],
            "gguf-iq4_nl-imatrix needs ggml's",
        ),
        (["nothing", "--reference", "fp32"], "nothing"),
        (["int4", "--reference", "fp32", "-n", "0"], "--count must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    bundles: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GGML_LIBRARY", raising=False)
    assert cli.main(["fidelity", *(str(bundles.get(word, word)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_model_is_refused(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(bundles["fp8"], tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["name"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["fidelity", str(other), "--reference", str(bundles["fp32"])]) == 2
    assert "is not an export of" in capsys.readouterr().err


def test_damaged_weights_are_refused(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(bundles["fp8"], tmp_path / "broken"))
    path = broken / "weights/transformer.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\0\0\0\0"
    path.write_bytes(data)
    assert cli.main(["fidelity", str(broken), "--reference", str(bundles["fp32"])]) == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if not line.startswith("warning: the prompt is longer")]
    assert error.startswith("error: ")
    assert "transformer" in error


def test_edits_may_run_together(bundles: dict[str, Path]) -> None:
    """In batches of pictures of one size, every edit measures what it measures alone."""
    teacher = Pipeline.load(bundles["fp32"], backend="onnxruntime")
    square, wide = (
        scene_cases(1, 0)[:3],
        dataclasses.replace(scene_cases(1, 1)[0], picture=lambda: Image.new("RGB", (96, 48), "red")),
    )
    references = reference_runs(teacher, [square[0], wide, *square[1:]], 3, 0, lambda: None)
    assert batches_of(references, 2) == [[0, 2], [3], [1]]
    other = Pipeline.load(bundles["fp8"], backend="onnxruntime")
    found = []
    for most in (1, 2):
        compared = ComparedBundle("x", {}, other, 8.0, 8.0, most)
        found.append(list(runs_of(compared, references, lambda: None)))
    for (known, alone, energies), (same, together, energies_together) in zip(*found, strict=True):
        assert known is same
        np.testing.assert_allclose(alone.latents[-1], together.latents[-1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(energies, energies_together, rtol=1e-3)
        assert energies.shape == (2, 3)
