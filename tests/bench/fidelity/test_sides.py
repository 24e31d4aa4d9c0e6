"""What is compared: which runs a bundle has, in which class, and what runs where ONNX Runtime has no kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import numpy as np
from PIL import Image

from kontext.bench.fidelity import bits_per_weight
from kontext.bench.fidelity.floors import WEIGHTS, floor, quantized_layers
from kontext.bench.fidelity.schemes import bundle_scheme
from kontext.bench.fidelity.sides import all_sides, ours, runnable
from kontext.runtime.bundle import Bundle
from kontext.runtime.pipeline import Pipeline


def test_a_bundle_runs_as_its_graph_says_and_on_a_cpu(bundles: dict[str, Path]) -> None:
    opened = {name: Bundle.open(path) for name, path in bundles.items()}
    reference = opened.pop("fp32")
    layers = bits_per_weight.common_layers(reference, list(opened.values()))
    found = all_sides(reference, opened, layers, ["gguf-q8_0"], as_deployed=True)
    assert [(side.group, side.name) for side in found] == [
        ("bundles", "fp8"),
        ("bundles", "int8"),
        ("bundles", "int4"),
        ("bundles", "int4-on-cpu"),
        ("peers", "gguf-q8_0"),
        ("floors", "int8-inputs-alone"),
        ("floors", "int8-weights-alone"),
    ]
    plain = all_sides(reference, opened, layers, [], as_deployed=False)
    assert [side.name for side in plain] == ["fp8", "int8", "int4"]
    with ours("int4", opened["int4"], reference, layers) as exact:
        assert exact.about["scheme"] == "W4A16"
        assert exact.pipe.backend.leave_inputs  # type: ignore[attr-defined]
    with ours("int4-on-cpu", opened["int4"], reference, layers, on_cpu="W4A8") as rounded:
        assert rounded.about["scheme"] == "W4A8"
        assert not rounded.pipe.backend.leave_inputs  # type: ignore[attr-defined]


def test_nvfp4_runs_in_its_own_graphs_without_e2m1(
    bundles: dict[str, Path],
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    from kontext.export.cli import main

    with untraced(tiny_bundle):
        assert (
            main.main([str(tiny_checkpoint), "-o", str(tmp_path / "x"), "--nvfp4", "--fp32", "--quiet"]) == 0
        )
    reference, bundle = Bundle.open(tiny_bundle), Bundle.open(tmp_path / "x")
    with runnable(bundle, reference) as unpacked:
        assert unpacked is not bundle
        unpacked.verify()
        pipe = Pipeline.load(unpacked, device="cpu", backend="onnxruntime")
        picture = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        found = np.asarray(pipe.edit(picture, "make it red", steps=2), np.float64)
    assert unpacked.graphs["transformer"].weights.name == "transformer.safetensors"
    with floor(reference, bundle, WEIGHTS, quantized_layers(bundle)) as plain:
        pipe = Pipeline.load(plain, device="cpu", backend="onnxruntime")
        expected = np.asarray(pipe.edit(picture, "make it red", steps=2), np.float64)
    assert np.abs(found - expected).max() <= 1  # the same values in the reference's graphs
    assert bundle_scheme(bundle) == "W4A16"
    fp8 = Bundle.open(bundles["fp8"])
    with runnable(fp8, reference) as same:
        assert same is fp8
