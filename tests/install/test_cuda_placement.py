"""Every graph of every format on ONNX Runtime's real CUDA provider, over stub CUDA libraries: it loads, and nothing
heavy is left to the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from .environments import Environment

pytestmark = pytest.mark.install

FORMATS = {
    "": [],
    "fp8": ["--fp8", "--weight-only"],
    "fp8-static": ["--fp8", "--fp8-attention", "--calibrate"],
    "int8": ["--int8"],
    "int8-weights": ["--int8", "--weight-only"],
    "int4": ["--int4"],
    "nf4": ["--nf4"],
}
"""Name → flags; `--calibrate` takes a folder."""

BUNDLES = [
    (compute, name)
    for compute in ("bf16", "fp16", "fp32")
    for name in FORMATS
    # docs/devices.md: its form is for CPUs.
    if (compute, name) != ("fp32", "int8")
]


@pytest.fixture(scope="module")
def gpu(wheel: Path, fresh: Callable[..., Environment]) -> Iterator[Environment]:
    environment = fresh()
    environment.install(wheel, "gpu,kernels")  # Triton has the headers that the stubs are compiled with
    yield environment
    environment.remove()


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model in every format; FP8 also with inputs and attention rounded with static scales."""
    from kontext.export.cli.main import main

    folder = tmp_path_factory.mktemp("bundles")
    samples = folder / "samples"
    samples.mkdir()
    for quality in range(4):  # the fewest that calibration takes
        picture = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 20 + 10 * quality)
        picture.convert("RGB").save(samples / f"{quality}.png")
        (samples / f"{quality}.txt").write_text("make it blue")
    made = {}
    for compute, name in BUNDLES:
        flags = [*FORMATS[name], *([str(samples)] if "--calibrate" in FORMATS[name] else [])]
        made[f"{compute}-{name}".strip("-")] = out = folder / f"{compute}-{name}".strip("-")
        assert main([str(tiny_checkpoint), "-o", str(out), f"--{compute}", *flags, "--quiet"]) == 0
    return made


def on_a_card(gpu: Environment, program: str, *words: object) -> tuple[object, ...]:
    """The words of kontext-bench that run a program on a card of 24 GB."""
    fake = ("fake-gpu", "--library", "onnxruntime", "--architecture", "sm_89", "--memory", "24GB", "--")
    return (*fake, gpu.folder / "bin" / program, *words)


def test_every_format_runs_on_the_gpu(gpu: Environment, bundles: dict[str, Path], tmp_path: Path) -> None:
    result = tmp_path / "placement.json"
    words = ("placement", *bundles.values(), "--json", result)
    gpu.succeed("kontext-bench", *on_a_card(gpu, "kontext-bench", *words))
    found = json.loads(result.read_text())["bundles"]
    assert set(found) == set(bundles)
    for name, graphs in found.items():
        for graph, entry in graphs.items():
            assert "error" not in entry, (name, graph, entry)
            assert not entry["heavy_on_cpu"], (name, graph, entry)
            # Of prompts, CLIP finds the end on the CPU: once an edit.
            assert entry["copies"] == (2 if graph == "text_encoder" else 0), (name, graph, entry)


PLACED = """
import json, sys, onnxruntime
from kontext.runtime.backends.placement import RECORD, heavy_on_cpu, placed_operators
for path in sys.argv[1:]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*RECORD)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    placed = placed_operators(session)
    print(json.dumps([path, list(placed)[0], heavy_on_cpu(placed)]))
"""
"""Prints where the operators of graphs run."""


@pytest.mark.parametrize("flags", [["--bf16"], ["--bf16", "--fp8"], ["--bf16", "--int4"]], ids=" ".join)
def test_graphs_for_optimum_run_on_the_gpu(
    gpu: Environment, tiny_checkpoint: Path, tmp_path: Path, flags: list[str]
) -> None:
    from kontext.export.cli.main import main

    out = tmp_path / "out"
    assert main([str(tiny_checkpoint), "--to", "optimum", "-o", str(out), *flags, "--quiet"]) == 0
    graphs = sorted(out.glob("*/model.onnx"))
    said = gpu.succeed("kontext-bench", *on_a_card(gpu, "python", "-c", PLACED, *graphs))
    found = [json.loads(line) for line in said.splitlines() if line.startswith("[")]
    assert found == [[str(graph), "CUDAExecutionProvider", {}] for graph in graphs]


def test_auto_takes_the_cuda_provider(gpu: Environment, bundles: dict[str, Path]) -> None:
    """Where neither PyTorch nor an engine is there."""
    said = gpu.succeed("kontext-bench", *on_a_card(gpu, "kontext-edit", "devices", bundles["bf16-fp8"]))
    assert "NVIDIA GPU: Fake GPU, sm_89, 24.00 GB" in said
    assert "* ONNX Runtime's CUDA provider: works" in said


@pytest.mark.parametrize("name", ["bf16-fp8-static", "fp16-int8"])
def test_an_edit_runs_up_to_the_first_convolution(
    name: str, gpu: Environment, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Text encoders, modulation and steps, inputs held on the device: their kernels do nothing. cuDNN cannot be a stub
    that far."""
    words = (bundles[name], "--prompt", "x", "--steps", "2", "-o", tmp_path / "out.png")
    message = gpu.refuse("kontext-bench", *on_a_card(gpu, "kontext-edit", *words))
    assert "vae_decoder failed in ONNX Runtime on CUDAExecutionProvider" in message
    assert "CUDNN" in message
    assert not (tmp_path / "out.png").exists()
