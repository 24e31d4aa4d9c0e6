"""Calibration: statistics are those of the inputs that the networks get in edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.tokenizer_files import read_tokenizers  # noqa: E402
from kontext.export.calibration import calibrate, watched_networks  # noqa: E402
from kontext.export.edit_sets.samples import Sample, Samples  # noqa: E402
from kontext.export.exporter import export  # noqa: E402
from kontext.export.progress import Progress  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402
from kontext.quant.statistics import Statistics  # noqa: E402
from kontext.runtime import Pipeline  # noqa: E402
from kontext.runtime.backends.protocol import ForwardingBackend, SamplerStep  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def samples() -> Samples:
    edits = [Sample("make the circle blue", picture(0)), Sample("draw a star", None)]
    return Samples("noise", edits, ["c.png: broken"])


def run(checkpoint: Path, samples: Samples) -> Statistics:
    opened = Checkpoint.open(checkpoint)
    recipe = choose_recipe(tuple(NETWORKS), 1, None, "int8")
    return calibrate.calibrate(opened, recipe, read_tokenizers(opened), samples, Progress(False))


@pytest.fixture(scope="module")
def collected(
    tiny_checkpoint: Path, samples: Samples, tmp_path_factory: pytest.TempPathFactory
) -> Statistics:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return run(tiny_checkpoint, samples)


def test_every_quantized_linear_is_watched_at_all_steps(collected: Statistics, tiny_checkpoint: Path) -> None:
    opened = Checkpoint.open(tiny_checkpoint)
    config, steps = opened.config, opened.config.sampler.steps
    transformer = collected.inputs["transformer"]
    # Two runs, since only one of the edits has a reference: 64 target tokens in each, 64 more in one.
    assert transformer["double_blocks.0.img_attn.qkv.weight"].rows == steps * (2 * 64 + 64)
    assert (
        transformer["double_blocks.0.txt_mlp.0.weight"].rows == steps * 2 * config.text_encoder_2.max_length
    )
    assert collected.inputs["modulation"]["double_blocks.0.img_mod.lin.weight"].rows == 2 * steps
    assert set(collected.inputs) >= {"text_encoder", "text_encoder_2", "modulation", "transformer"}
    for layer in transformer.values():
        assert (layer.largest.amax(1) > 0).all()  # in every range of steps
    assert not any(name.startswith(("img_in", "final_layer")) for name in transformer)
    assert collected.about["skipped"] == 1


def test_the_first_layer_sees_the_modulated_latents(
    collected: Statistics, tiny_checkpoint: Path, tiny_bundle: Path, samples: Samples
) -> None:
    """The largest input of the first block's linear against ONNX Runtime's graph of the same weights."""
    import onnx

    from kontext.runtime.backends.onnxruntime import OnnxRuntimeBackend

    name = "double_blocks.0.img_mod.lin.weight"
    model = onnx.load(tiny_bundle / "modulation.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if name in node.input)
    watched = node.input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(watched, onnx.TensorProto.FLOAT, None))
    path = tiny_bundle / "modulation-watched.onnx"
    onnx.save(model, path)
    try:
        backend = OnnxRuntimeBackend({"modulation": path}, "cpu")
        pipe = Pipeline.load(tiny_bundle)
        seen: list[float] = []

        class Watching(ForwardingBackend):
            def run(self, graph: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, np.ndarray]:
                if graph == "modulation":
                    seen.append(float(np.abs(backend.run(graph, inputs)[watched]).max()))
                return super().run(graph, inputs, step)

        pipe.backend = Watching(pipe.backend)
        for sample in samples.samples:
            pipe.edit(sample.picture(), sample.prompt)
    finally:
        path.unlink()
    assert collected.inputs["modulation"][name].amax() == pytest.approx(max(seen), rel=1e-4)


def test_it_runs_once(tiny_checkpoint: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tiny_checkpoint, samples)
    monkeypatch.setattr(calibrate, "WatchedNetworks", None)  # it would fail
    again = run(tiny_checkpoint, samples)
    assert again.file is not None
    ours, theirs = (each.inputs["transformer"] for each in (first, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].histogram, theirs[name].histogram) for name in ours)


def test_large_networks_stream_their_blocks(
    tiny_checkpoint: Path, samples: Samples, collected: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_networks, "RESIDENT_BYTES", 1)
    streamed = run(tiny_checkpoint, samples)
    for name, layer in collected.inputs["transformer"].items():
        assert torch.equal(layer.largest, streamed.inputs["transformer"][name].largest), name


def test_a_network_that_overflows_is_named(tiny_checkpoint: Path, tmp_path: Path, samples: Samples) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    path = next((broken / "transformer").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["x_embedder.bias"] = torch.full_like(tensors["x_embedder.bias"], 3e38)
    tensors["x_embedder.weight"] = tensors["x_embedder.weight"] * 1e38
    save_file(tensors, path)
    with pytest.raises(KontextError, match=r"calibration stopped at transformer: double_blocks\.0.*NaN"):
        run(broken, samples)


def test_a_calibrated_bundle_says_so_and_runs(
    tiny_checkpoint: Path, tmp_path: Path, samples: Samples, tiny_bundle: Path
) -> None:
    recipe = choose_recipe(tuple(NETWORKS), 1, None, "int4", rank=8)
    summary = export(Checkpoint.open(tiny_checkpoint), recipe, tmp_path / "bundle", samples=samples)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["calibration"]["digest"] == samples.digest() == summary.recipe.calibration
    assert manifest["calibration"]["count"] == 2
    layer = manifest["precision"]["layers"]["transformer"]["double_blocks.0.img_mlp.0.weight"]
    assert layer == {"format": "int4", "rank": 8}
    with safe_open(tmp_path / "bundle" / "weights" / "transformer.safetensors", "np") as file:
        assert file.get_slice("double_blocks.0.img_mlp.0.weight_down").get_shape()[1] == 8
    quantized, full = (
        np.asarray(Pipeline.load(folder).edit(picture(0), "make the circle blue", steps=2), np.float64)
        for folder in (tmp_path / "bundle", tiny_bundle)
    )
    assert 0 < np.abs(quantized - full).mean() < 12
