"""`kontext-export inspect BUNDLE`: everything that its manifest says, and its own weights files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.export.cli import main
from kontext.export.cli.inspect_bundle import describe_layer, describe_sampler
from kontext.model.diffusers_config import read_config
from kontext.model.networks import NETWORKS, weight_shapes
from kontext.quant.recipe import Layer
from kontext.runtime.bundle import Bundle
from kontext.runtime.sampler_entry import SamplerEntry, SigmasEntry


def inspect(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    assert main.main(["inspect", *map(str, paths)]) == 0
    return capsys.readouterr().out


def test_the_whole_bundle(
    tiny_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = inspect(capsys, tiny_bundle)
    digest = hashlib.sha256((tiny_bundle / "manifest.json").read_bytes()).hexdigest()
    for line in (
        f"format 1, made by kontext-export 0.1.0, digest sha256:{digest}",
        f"checkpoint recorded: {tiny_checkpoint.name}\n",
        "fp32 weights, computes in fp32\n",
        "edits take 28 steps at guidance 2.5; sigmas shifted by e^mu (mu 0.5 to 1.15); several references by index",
        "; prompts of 24 tokens for T5\n",
    ):
        assert line in printed
    assert str(tiny_checkpoint) not in printed
    assert inspect(capsys, tiny_bundle / "manifest.json").partition(":")[2] == printed.partition(":")[2]


def test_formats_by_layer(
    fp8_bundle: Path, int4_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every weight of every network counts once."""
    config = read_config(tiny_checkpoint)
    for folder in (fp8_bundle, int4_bundle):
        printed, layers = inspect(capsys, folder), Bundle.open(folder).manifest["precision"]["layers"]
        for network in NETWORKS:
            line = next(line for line in printed.splitlines() if line.startswith(f"    {network}: "))
            formats = line.partition(": ")[2].removesuffix("; computes in fp32")
            counts = {part.partition(" ")[2]: int(part.partition(" ")[0]) for part in formats.split(", ")}
            assert sum(counts.values()) == len(weight_shapes(network, config)), line
            plain = counts.pop("fp32")
            assert plain == len(weight_shapes(network, config)) - len(layers.get(network, {}))
            assert set(counts) == {describe_layer(layer) for layer in layers.get(network, {}).values()}


@pytest.fixture
def noted(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with everything that a manifest may hold, made of entries alone."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "noted"))
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {"kernels/sm_89/000-a.cubin": b"code", "kernels/sm_89/kernels.json": b"{}"}
    files |= {f"engines/{target}/{name}.engine": b"engine" for target in ("sm89", "sm120") for name in "ab"}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["engines"] = [
        engine(manifest, graph, target, f"engines/{target}/{name}.engine")
        for target in ("sm89", "sm120")
        for graph, name in (("transformer", "a"), ("modulation", "b"))
    ]
    manifest["engines"][0]["graph_sha256"] = "0" * 64
    manifest["kernels"] = [{"architecture": "sm_89", "index": "kernels/sm_89/kernels.json"}]
    manifest["calibration"] = {
        "samples": "edits", "count": 16, "steps": 28, "guidance": 2.5, "digest": "ab" * 32,
    }  # fmt: skip
    manifest["plan"] = {
        "budget": 12e9, "target": "RTX 4070", "peak": 11.5e9, "stages": {"transformer": {"peak": 11.5e9}},
        "workload": {"width": 1024, "height": 768, "references": 1, "batch": 1, "steps": 28},
    }  # fmt: skip
    manifest["model"]["loras"] = [{"file": "style.safetensors", "weight": 0.5}]
    del manifest["source"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def engine(manifest: dict[str, Any], graph: str, target: str, file: str) -> dict[str, Any]:
    return {
        "file": file, "graph": graph, "library": "rtx", "version": "1.2", "platform": "linux-x86_64", "target": target,
        "precision": "fp16", "weights": "bound", "profiles": [{"use": "x", "inputs": {"y": [[1], [1], [2]]}}],
        "graph_sha256": manifest["files"][f"{graph}.onnx"]["sha256"],
    }  # fmt: skip


def test_what_was_compiled_calibrated_planned_and_fused(
    noted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (noted / "kernels/sm_89/000-a.cubin").unlink()
    (noted / "engines/sm120/a.engine").unlink()
    printed = inspect(capsys, noted)
    for line in (
        "checkpoint not recorded; the model is called kontext-random",
        "with the LoRA style.safetensors at 0.5",
        "calibrated on 16 edits of edits at 28 steps, guidance 2.5 (digest abababababababab)",
        "planned for 12.00 GB on RTX 4070: peak 11.50 GB at 1024x768, references 1, batch 1\n    transformer 11.50 GB",
        "engines for sm89 by TensorRT for RTX 1.2 on linux-x86_64: 1 of 6 graphs, fp16, weights bound, 12 B\n",
        "engines for sm120 by TensorRT for RTX 1.2 on linux-x86_64: 2 of 6 graphs, fp16, weights bound, 12 B; 1",
        "; 1 of 2 files are damaged: build the engines again",
        "kernels for sm_89: 1, 6 B; 1 of 2 files are damaged: compile the kernels again",
    ):
        assert line in printed


@pytest.mark.parametrize("place", ["model", "engines", "plan", "calibration"])
def test_what_a_manifest_says_cannot_forge_a_line(
    place: str, noted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal shows what it is sent; the server's README.md, which has the model's name, is read by people too."""
    manifest = json.loads((noted / "manifest.json").read_text())
    evil = "\x1b[31mEVIL\nLINE2"
    entry = manifest[place][0] if place == "engines" else manifest[place]
    entry[{"model": "name", "engines": "precision", "plan": "target", "calibration": "samples"}[place]] = evil
    (noted / "manifest.json").write_text(json.dumps(manifest))
    for words in (
        ["inspect", str(noted)],
        ["digest", str(noted)],
        [str(noted), "--triton", str(tmp_path / "served")],
    ):
        assert main.main(words) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error == (
            f"error: {noted}/manifest.json: the text {json.dumps(evil)} has the control character U+001B\n"
        )
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Layer("fp8"), "fp8"),
        (Layer("int4", 32), "int4 of rank 32"),
        (Layer("fp8", activations="fp8", centred=True), "fp8 (fp8 inputs, centred)"),
        (
            Layer("int8", 16, "int8", rounding="static", scaled=True),
            "int8 of rank 16 (static int8 inputs, scaled)",
        ),
    ],
)
def test_layers(layer: Layer, text: str) -> None:
    assert describe_layer(layer.as_json()) == text


def test_files_of_a_bundle(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_bundle / "weights" / "transformer.safetensors"
    printed = inspect(capsys, path, tiny_bundle / "transformer.onnx")
    assert f"{path}: the weights of transformer of the bundle {tiny_bundle}, " in printed
    assert "not a checkpoint: weights of linear layers are transposed, [in, out]" in printed
    assert "export again from the bundle's checkpoint (recorded: checkpoint)" in printed
    assert f"transformer.onnx: a file of the bundle {tiny_bundle}, " in printed


def test_samplers() -> None:
    plain = {"steps": 4, "guidance": 3.5, "base_shift": 0.5, "max_shift": 1.15, "base_tokens": 256}
    plain |= {"max_tokens": 4096, "size_multiple": 16, "preferred_sizes": ()}
    sigmas = SigmasEntry("constant", 3.0, "karras", 0.02)
    text = describe_sampler(SamplerEntry(**plain, sigmas=sigmas, reference_method="offset"))
    assert text == (
        "edits take 4 steps at guidance 3.5; sigmas shifted by 3, spaced karras, the last 0.02; several references by "
        "offset"
    )
