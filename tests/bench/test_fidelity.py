"""Fidelity: nothing is lost against itself, fewer bits lose more, and forced steps stay on the reference's path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench import cli, fidelity
from kontext.bench.edits import held_out
from kontext.export import cli as export_cli
from kontext.runtime import Pipeline


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_bundle: Path
) -> dict[str, Path]:
    """The random checkpoint with quantized weights, over the graphs of its fp32 bundle."""
    import onnx
    import onnx_ir as ir

    def trace(name: str, config: object, compute: str) -> ir.Model:
        model = ir.from_proto(onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False))
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = None
        return model

    folder = tmp_path_factory.mktemp("fidelity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kontext.export.graphs.trace", trace)
        for name in ("fp8", "int8", "int4"):
            words = [str(tiny_checkpoint), "-o", str(folder / name), f"--{name}", "--fp32", "--quiet"]
            assert export_cli.main(words) == 0
    return {"fp32": tiny_bundle, "fp8": folder / "fp8", "int8": folder / "int8", "int4": folder / "int4"}


def test_fewer_bits_lose_more(bundles: dict[str, Path]) -> None:
    result = fidelity.measure(bundles["fp32"], list(bundles.values()), steps=2, count=1, seed=0)
    same, fp8, int8, int4 = (result["bundles"][path.name] for path in bundles.values())
    assert same["velocity_snr"] == 200
    assert same["psnr"] == 100
    assert same["ssim"] == 1
    assert same["latent_distance_steps"] == [0, 0]
    assert same["lost_edits"] == 0
    assert 20 < fp8["velocity_snr"] < int8["velocity_snr"] < 60
    assert 5 < int4["velocity_snr"] < fp8["velocity_snr"] - 6
    assert int4["psnr"] < fp8["psnr"] < 100
    assert int4["bits_per_weight"] < fp8["bits_per_weight"] < same["bits_per_weight"]
    assert len(fp8["velocity_snr_steps"]) == 2


def test_forced_steps_start_where_the_reference_was(bundles: dict[str, Path]) -> None:
    teacher, student = Pipeline.load(bundles["fp32"]), Pipeline.load(bundles["int4"])
    (edit,) = held_out("recolour", 1, 0)
    recorder = fidelity.Recorder(teacher.backend)
    teacher.backend = recorder  # type: ignore[assignment]
    expected = fidelity.free_run(teacher, edit, 3, 0)
    forced = fidelity.TeacherForced(student.backend, recorder.trajectory)
    student.backend = forced  # type: ignore[assignment]
    found = fidelity.free_run(student, edit, 3, 0)
    for ours, theirs in zip(found.latents, expected.latents, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert min(forced.noise) > 0
    assert len(forced.signal) == 3


def test_the_command(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "fidelity.json"
    words = ["fidelity", str(bundles["fp8"]), "--reference", str(bundles["fp32"]), "--steps", "1", "-n", "1"]
    assert cli.main([*words, "--json", str(output)]) == 0
    assert "velocity SNR [dB]" in capsys.readouterr().out
    assert json.loads(output.read_text())["bundles"]["fp8"]["precision"] == "fp8"


def test_another_model_is_refused(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = Path(shutil.copytree(bundles["fp8"], tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["name"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["fidelity", str(other), "--reference", str(bundles["fp32"])]) == 2
    assert "is not an export of" in capsys.readouterr().err
