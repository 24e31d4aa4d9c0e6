"""The statistics that are shipped with the embedded model: what a calibration computes, and used for nothing else."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.tokenizer_files import read_tokenizers  # noqa: E402
from kontext.export.calibration.calibrate import calibrate, collect, describe_calibration  # noqa: E402
from kontext.export.calibration.samples import scene_samples  # noqa: E402
from kontext.export.calibration.shipped import SHIPPED, find_shipped, main, shipped_recipe  # noqa: E402
from kontext.export.calibration.watched_networks import watched_linears, watched_operands  # noqa: E402
from kontext.export.cli.source_flags import EMBEDDED  # noqa: E402
from kontext.export.edit_sets.samples import Samples  # noqa: E402
from kontext.export.progress import Progress  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant.formats import FORMATS  # noqa: E402
from kontext.quant.recipe import Recipe, Rule, choose_recipe  # noqa: E402
from kontext.quant.statistics import InputStatistics, Statistics  # noqa: E402
from kontext.safetensors_header import read_header  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (EMBEDDED / "model_index.json").exists(), reason="the embedded model is not part of this checkout"
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def samples() -> Samples:
    return scene_samples()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The embedded model in another folder, to be changed."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "copy"))


def test_they_are_what_calibration_computes(samples: Samples) -> None:
    """Again, on this machine: to the rounding of other kernels, and of the packed moments."""
    checkpoint = Checkpoint.open(EMBEDDED)
    recipe = shipped_recipe(checkpoint)
    shipped = find_shipped(checkpoint, recipe, samples)
    assert shipped is not None
    fresh = collect(checkpoint, recipe, read_tokenizers(checkpoint), samples, Progress(False))
    assert shipped.about == fresh.about == describe_calibration(checkpoint, samples)
    assert {network: set(layers) for network, layers in shipped.inputs.items() if layers} == {
        network: set(layers) for network, layers in fresh.inputs.items() if layers
    }
    for network, layers in fresh.inputs.items():
        for name, expected in layers.items():
            found, where = shipped.inputs[network][name], f"{network}: {name}"
            assert found.rows == expected.rows, where
            spread = (expected.highest - expected.lowest).amax(1, keepdim=True)
            assert bool(((found.highest - expected.highest).abs() <= 0.01 * spread).all()), where
            assert bool(((found.lowest - expected.lowest).abs() <= 0.01 * spread).all()), where
            moved = (found.histogram - expected.histogram).abs().sum() / expected.histogram.sum()
            assert float(moved) < 0.01, where
            assert (found.moments is None) == (expected.moments is None), where
            if expected.moments is not None and found.moments is not None:
                change = (found.moments - expected.moments).norm() / expected.moments.norm()
                assert float(change) < 0.02, where


def test_an_export_uses_them(samples: Samples) -> None:
    checkpoint = Checkpoint.open(EMBEDDED)
    recipe = choose_recipe(tuple(NETWORKS), checkpoint.parameters(), None, "fp8", calibrated=True)
    found = calibrate(checkpoint, recipe, {}, samples, Progress(False))
    assert found.file == SHIPPED
    assert "double_blocks.0.img_attn.qkv.weight" in found.inputs["transformer"]
    assert not any(".attention." in layer for layer in found.inputs["transformer"])
    with_operands = calibrate(
        checkpoint, dataclasses.replace(recipe, attention="fp8"), {}, samples, Progress(False)
    )
    assert "single_blocks.3.attention.v" in with_operands.inputs["transformer"]


def test_they_have_the_inputs_of_every_format() -> None:
    checkpoint = Checkpoint.open(EMBEDDED)
    widest = watched_linears(checkpoint, shipped_recipe(checkpoint))
    for name in FORMATS:
        recipe = choose_recipe(tuple(NETWORKS), checkpoint.parameters(), None, name, calibrated=True)
        for network, weights in watched_linears(checkpoint, recipe).items():
            assert set(weights) <= set(widest[network]), name


def test_a_copy_elsewhere_uses_them(copy: Path, samples: Samples) -> None:
    checkpoint = Checkpoint.open(Origin(copy, name="another name"))
    assert find_shipped(checkpoint, shipped_recipe(checkpoint), samples) is not None


@pytest.mark.parametrize(
    "change", ["weight", "tokenizer", "steps", "prompt length", "scheduler", "samples", "lora"]
)
def test_nothing_else_uses_them(change: str, copy: Path, tmp_path: Path, samples: Samples) -> None:
    origin = Origin(copy)
    if change == "weight":
        path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        tensors["proj_out.bias"][0] += 1
        save_file(tensors, path, {"format": "pt"})
    elif change == "tokenizer":
        path = copy / "tokenizer" / "merges.txt"
        path.write_text(path.read_text() + "\n")
    elif change == "steps":
        origin = Origin(copy, steps=4)
    elif change == "prompt length":
        origin = Origin(copy, max_sequence_length=16)
    elif change == "scheduler":
        path = copy / "scheduler" / "scheduler_config.json"
        path.write_text(path.read_text().replace('"max_shift": 1.15', '"max_shift": 1.2'))
    elif change == "samples":
        samples = Samples(samples.name, samples.samples[:-1])
    else:
        module = "transformer.x_embedder"
        factors = {
            f"{module}.lora_A.weight": torch.ones(2, 64),
            f"{module}.lora_B.weight": torch.ones(192, 2),
        }
        save_file(factors, tmp_path / "a.safetensors")
        origin = Origin(copy, loras=[(tmp_path / "a.safetensors", 1.0)])
    checkpoint = Checkpoint.open(origin)
    assert find_shipped(checkpoint, shipped_recipe(checkpoint), samples) is None


def test_an_installation_without_them(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kontext.export.calibration.shipped.SHIPPED", tmp_path / "none")
    checkpoint = Checkpoint.open(EMBEDDED)
    assert find_shipped(checkpoint, shipped_recipe(checkpoint), samples) is None


@pytest.mark.parametrize("damage", ["middle", "metadata", "no digest", "truncated", "empty"])
def test_damage_is_a_warning_and_they_are_not_used(
    damage: str, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bytearray(SHIPPED.read_bytes())
    if damage == "middle":
        middle = slice(len(whole) // 2, len(whole) // 2 + 200_000)
        whole[middle] = bytes(byte ^ 0x55 for byte in whole[middle])
    elif damage == "metadata":
        whole = whole.replace(b'"bytes"', b'"bites"')
    elif damage == "no digest":
        whole = whole.replace(b'"contents"', b'"kontents"'[: len('"contents"')])
    else:
        del whole[len(whole) // 2 if damage == "truncated" else 0 :]
    path = tmp_path / "calibration.safetensors"
    path.write_bytes(whole)
    monkeypatch.setattr("kontext.export.calibration.shipped.SHIPPED", path)
    checkpoint = Checkpoint.open(EMBEDDED)
    with pytest.warns(UserWarning, match=r"calibration\.safetensors .*; calibrating instead$") as said:
        assert find_shipped(checkpoint, shipped_recipe(checkpoint), samples) is None
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


def test_the_command_writes_what_is_found(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(EMBEDDED)
    recipe = shipped_recipe(checkpoint)
    watched = watched_linears(checkpoint, recipe)
    watched["transformer"] += watched_operands(checkpoint, recipe)
    found = {network: {name: InputStatistics.empty(8) for name in watched[network]} for network in watched}
    monkeypatch.setattr(
        "kontext.export.calibration.calibrate.collect", lambda *_: Statistics(found, {"samples": "few"})
    )
    before = SHIPPED.read_bytes()
    assert main(["--output", str(tmp_path / "new")]) == 0
    assert SHIPPED.read_bytes() == before
    monkeypatch.setattr("kontext.export.calibration.shipped.SHIPPED", tmp_path / "new")
    shipped = find_shipped(checkpoint, recipe, samples)
    assert shipped is not None
    assert shipped.about == {"samples": "few"}


@pytest.mark.parametrize("network", ["*", "transformer", "vae_encoder"])
def test_a_recipe_that_spares_nothing_does_not_use_them(network: str, samples: Samples) -> None:
    """They lack layers that usual recipes spare. Oracle: the names in the file's header."""
    checkpoint = Checkpoint.open(EMBEDDED)
    recipe = Recipe("all", dict.fromkeys(NETWORKS, "fp32"), (Rule(network, "*", "nvfp4"),))
    wanted = {
        f"{name}/{weight}" for name, each in watched_linears(checkpoint, recipe).items() for weight in each
    }
    assert wanted - {name.rpartition("/")[0] for name in read_header(SHIPPED).tensors}
    assert find_shipped(checkpoint, recipe, samples) is None


def test_scales_that_calibration_cannot_find_are_refused(samples: Samples) -> None:
    """Oracle: the pipeline samples latents and decodes none, so the decoder has no statistics."""
    checkpoint = Checkpoint.open(EMBEDDED)
    rule = Rule("vae_decoder", "*", "int8", activations="int8", rounding="static")
    recipe = Recipe("all", dict.fromkeys(NETWORKS, "fp32"), (rule,))
    with pytest.raises(KontextError, match="calibration does not run vae_decoder"):
        calibrate(checkpoint, recipe, {}, samples, Progress(False))
