"""Sensitivity: one layer against the same run by hand, errors that add up, and the estimate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.tokenizer_files import read_tokenizers  # noqa: E402
from kontext.export.calibration import sensitivity, trajectories  # noqa: E402
from kontext.export.cli.main import main  # noqa: E402
from kontext.export.cli.sensitivity_text import render_sensitivity  # noqa: E402
from kontext.export.edit_sets.samples import Sample, Samples  # noqa: E402
from kontext.export.progress import Progress  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin  # noqa: E402
from kontext.quant.options import parse_options  # noqa: E402
from kontext.quant.sensitivity import Sensitivity  # noqa: E402

STEPS = 4
OPTIONS = parse_options("int8,int4:0")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8))


SAMPLES = Samples("noise", [Sample("make the circle blue", picture(0)), Sample("draw a star", None)])


def open_checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(Origin(folder, steps=STEPS))


def measure(folder: Path, calibrated: bool = False) -> Sensitivity:
    checkpoint = open_checkpoint(folder)
    tokenizers = read_tokenizers(checkpoint)
    return sensitivity.measure_sensitivity(
        checkpoint, OPTIONS, tokenizers, SAMPLES, calibrated, Progress(False)
    )


@pytest.fixture(scope="module")
def report(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sensitivity, "PICTURES", 2)
        return measure(tiny_checkpoint)


def test_every_layer_is_measured_in_every_option(report: Sensitivity, tiny_checkpoint: Path) -> None:
    layers = sensitivity.measured_layers(open_checkpoint(tiny_checkpoint))
    assert {name: set(each) for name, each in report.layers.items()} == {
        name: set(each) for name, each in layers.items()
    }
    assert set(report.layers) == {"text_encoder", "text_encoder_2", "modulation", "transformer"}
    for layer in report.layers["transformer"].values():
        for option in map(str, OPTIONS):
            if option in layer.errors:
                assert 0 < layer.errors[option] < 1
                assert len(layer.ranges[option]) == 3
    assert report.about["steps"] == [1, 3, 4]
    assert report.about["count"] == 2


def test_four_bits_hurt_more_than_eight(report: Sensitivity) -> None:
    both = [layer.errors for layer in report.layers["transformer"].values() if len(layer.errors) == 2]
    assert len(both) > 8
    assert all(each["int4:0"] > each["int8"] for each in both)


def test_errors_add_up(report: Sensitivity) -> None:
    """To first order, the energy of the whole model's error is the sum of its layers'."""
    for sums in report.sums.values():
        assert 0.5 < sums["whole"] / sums["sum"] < 2


def test_pictures_of_the_most_sensitive_layers(report: Sensitivity) -> None:
    assert len(report.pictures) == 2
    worst = max(
        (layer.errors.get("int4:0", 0.0), network, weight)
        for network, each in report.layers.items()
        for weight, layer in each.items()
    )
    assert (report.pictures[0]["network"], report.pictures[0]["weight"]) == worst[1:]
    assert all(10 < each["psnr"] <= 100 for each in report.pictures)


def test_one_layer_by_hand(report: Sensitivity, tiny_checkpoint: Path) -> None:
    """The last linear's error in the velocity, with the runtime's own sampler over a network changed by hand."""
    checkpoint = open_checkpoint(tiny_checkpoint)
    name = "single_blocks.1.linear2.weight"
    networks = trajectories.EditableNetworks(checkpoint)
    with sensitivity.outline_bundle(checkpoint, networks.recipe, read_tokenizers(checkpoint)) as bundle:
        pipeline = sensitivity.Pipeline(bundle, networks)
        edits = trajectories.record_edits(pipeline, networks, SAMPLES, 2, 2)
        product, relative = sensitivity.QuantizedWeights(checkpoint, None).product(
            "transformer", name, OPTIONS[1]
        )
        parameter = networks.networks["transformer"].get_parameter(name)
        before, parameter.data = parameter.data, product.weight.t().contiguous()
        error, _ = sensitivity.velocity_error(edits, "transformer")
        parameter.data = before
        with networks.quantized("transformer", {name: product}):
            again, _ = sensitivity.velocity_error(edits, "transformer")
        nothing, _ = sensitivity.velocity_error(edits, "transformer")
    assert error == pytest.approx(report.layers["transformer"][name].errors["int4:0"], rel=1e-3)
    assert again == pytest.approx(error, rel=1e-3)
    assert relative == pytest.approx(report.layers["transformer"][name].relative["int4:0"])
    assert nothing < 1e-9


def test_it_is_measured_once(
    tiny_checkpoint: Path, report: Sensitivity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "PICTURES", 0)
    first = measure(tiny_checkpoint)
    monkeypatch.setattr(sensitivity, "EditableNetworks", None)  # it would fail
    again = measure(tiny_checkpoint)
    assert again == first
    assert again.file is not None


def test_the_estimate_runs_nothing(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "EditableNetworks", None)
    estimated = sensitivity.estimate_sensitivity(
        open_checkpoint(tiny_checkpoint), OPTIONS, None, Progress(False)
    )
    assert estimated.method == "weights"
    layer = estimated.layers["transformer"]["double_blocks.0.img_mlp.0.weight"]
    assert 0 < layer.errors["int8"] < layer.errors["int4:0"]
    assert "estimated from the error of each layer's weights" in render_sensitivity(estimated)


def test_the_command(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    output, plot = tmp_path / "report.json", tmp_path / "report.png"
    words = ["sensitivity", str(tiny_checkpoint), "--estimate", "-o", str(output), "--plot", str(plot)]
    assert main([*words, "--formats", "int8,int4:0", "--calibrate", "none"]) == 0
    assert Sensitivity.load(output).options == ["int8", "int4:0"]
    assert Image.open(plot).width > 500
    assert "lowest in int4:0 first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "no/such/folder/report.json"], "no/such/folder is not a folder: make it first"),
        (["-o", "report.json", "--formats", "int9"], "'int9' is not a number format"),
        (["-o", "report.json", "--calibrate", "no/such"], "no/such does not exist"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sensitivity", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_formats_that_cannot_be_exported_are_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "FORMATS", {"int8": None})
    with pytest.raises(KontextError, match="int4 weights cannot be exported: choose from int8"):
        sensitivity.check_options(OPTIONS, False)


def test_reports_are_json(report: Sensitivity, tmp_path: Path) -> None:
    sensitivity.write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["format"] == "kontext-sensitivity"
    assert Sensitivity.load(tmp_path / "report.json") == report


def test_rounded_inputs_need_a_calibration(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    with pytest.raises(KontextError, match=r"int8\+int8 rounds inputs with scales from a calibration"):
        sensitivity.measure_sensitivity(
            checkpoint, parse_options("int8+int8"), {}, SAMPLES, False, Progress(False)
        )
