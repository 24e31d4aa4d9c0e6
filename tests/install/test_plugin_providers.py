"""Published plug-in providers of ONNX Runtime in a fresh environment: found, and run or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.decibels import psnr

from .environments import Environment

pytestmark = pytest.mark.install

WORDS = ("--prompt", "x", "--steps", 1, "-o", "out.png")


@pytest.fixture(scope="module")
def plugged(wheel: Path, fresh: Callable[..., Environment]) -> Iterator[Environment]:
    environment = fresh()
    environment.install(wheel, "cpu")
    environment.pip("install", "onnxruntime-ep-openvino", "onnxruntime-ep-webgpu", "onnxruntime-ggml")
    yield environment
    environment.remove()


def is_intel() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text()


def test_openvino_as_a_plugin(plugged: Environment, tiny_bundle: Path) -> None:
    """On Intel's processors it runs, and what it leaves to the CPU is named; on others it lists no device."""
    words = (tiny_bundle, *WORDS, "--provider", "onnxruntime_ep_openvino")
    if not is_intel():
        assert "onnxruntime_ep_openvino: it finds no device here" in plugged.refuse("kontext-edit", *words)
        pytest.skip("its devices are Intel's processors, GPUs and NPUs: only the refusal was tested")
    (plugged.scratch / "fp32.json").write_text('{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}')  # not bf16
    said = plugged.succeed("kontext-edit", *words[:-1], "onnxruntime_ep_openvino:load_config=fp32.json")
    assert "transformer.onnx: OpenVINOExecutionProvider leaves to the CPU: " in said
    assert "RotaryEmbedding" in said
    picture = read(plugged)
    plugged.succeed("kontext-edit", tiny_bundle, *WORDS, "--device", "cpu")
    assert psnr(picture, read(plugged)) > 60


def test_ggml_runs_what_it_has_operators_for(plugged: Environment, tiny_bundle: Path) -> None:
    """The modulation; what it leaves to the CPU is named, and the picture is ONNX Runtime's own."""
    said = plugged.succeed("kontext-edit", tiny_bundle, *WORDS, "--provider", "onnxruntime_ggml")
    assert "transformer.onnx: libonnxruntime_ggml leaves to the CPU: " in said
    assert "modulation.onnx" not in said
    pictures = [read(plugged)]
    plugged.succeed("kontext-edit", tiny_bundle, *WORDS, "--device", "cpu")
    pictures.append(read(plugged))
    assert psnr(*pictures) > 35  # it keeps the modulation's weights in fp16


def read(environment: Environment) -> np.ndarray:
    with Image.open(environment.scratch / "out.png") as picture:
        return np.asarray(picture.convert("RGB"))


def test_webgpu_without_a_gpu(plugged: Environment, tiny_bundle: Path) -> None:
    said = plugged.succeed("kontext-edit", "devices", tiny_bundle)
    if "--device webgpu: WebGpuExecutionProvider" in said:
        pytest.skip("this machine has a GPU that WebGPU runs on")
    assert "--device webgpu: provider onnxruntime_ep_webgpu: it finds no device here" in said
    assert "* ONNX Runtime on the CPU: works" in said
    assert "finds no device here" in plugged.refuse("kontext-edit", tiny_bundle, *WORDS, "--device", "webgpu")
