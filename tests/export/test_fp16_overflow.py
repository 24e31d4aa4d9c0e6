"""A checkpoint whose text stream leaves the range of fp16, as FLUX's does: exported, and edited with, against
diffusers' FluxKontextPipeline in fp16."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.decibels import psnr  # noqa: E402
from kontext.export.cli.main import main  # noqa: E402
from kontext.runtime import Pipeline  # noqa: E402

PROMPT, STEPS, GUIDANCE, SEED, SIDE = "make the red circle blue", 4, 3.0, 7, 128


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The random checkpoint; the gate of the first block's text MLP is 60000, and what it multiplies is near 2."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("overflow") / "checkpoint")
    (file,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(file)
    hidden = weights["transformer_blocks.0.ff_context.net.2.bias"].numel()
    weights["transformer_blocks.0.norm1_context.linear.bias"][5 * hidden : 6 * hidden] = 6e4
    weights["transformer_blocks.0.ff_context.net.2.bias"] += 2
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def fp16_bundle(overflowing: Path) -> Path:
    folder = overflowing.with_name("fp16")
    assert main([str(overflowing), "-o", str(folder), "--fp16", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def reference() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE // 16, SIDE // 16, 3), np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def expected(overflowing: Path, reference: Image.Image) -> Image.Image:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.FluxKontextPipeline.from_pretrained(overflowing).to(torch.float16)
    pipeline.set_progress_bar_config(disable=True)
    made: Image.Image = pipeline(
        image=reference,
        prompt=PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        width=SIDE,
        height=SIDE,
        max_area=SIDE * SIDE,
        max_sequence_length=24,
        _auto_resize=False,
    ).images[0]
    return made


def edited(bundle: Path, reference: Image.Image, backend: str, **options: Any) -> Image.Image:
    pipe = Pipeline.load(bundle, device="cpu", backend=backend, **options)
    return pipe.edit(reference, PROMPT, steps=STEPS, guidance=GUIDANCE, seed=SEED, size=(SIDE, SIDE))


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_the_picture_is_that_of_diffusers(
    backend: str, fp16_bundle: Path, reference: Image.Image, expected: Image.Image
) -> None:
    """51.4 and 51.7 dB; diffusers in fp32, without the clipping, is at 41 dB."""
    assert np.asarray(expected).std() > 20
    assert psnr(edited(fp16_bundle, reference, backend), expected) >= 49


@pytest.mark.parametrize("format", ["int4", "fp8"])
def test_quantized_weights_in_fp16(
    format: str,
    overflowing: Path,
    fp16_bundle: Path,
    reference: Image.Image,
    expected: Image.Image,
    untraced: Callable[[Path], AbstractContextManager[None]],
) -> None:
    """Far from diffusers' picture, as such weights of a random model are, but finite and the same in both backends."""
    folder = overflowing.with_name(f"fp16-{format}")
    with untraced(fp16_bundle):
        assert main([str(overflowing), "-o", str(folder), "--fp16", f"--{format}", "--quiet"]) == 0
    pictures = [edited(folder, reference, backend) for backend in ("onnxruntime", "torch")]
    assert psnr(*pictures) >= 40
    assert psnr(pictures[0], expected) >= 20


def test_only_fp16_graphs_clip(fp16_bundle: Path, tiny_bundle: Path) -> None:
    """One double block's text stream and two single blocks. Max and Min hand NaN on, where a Clip may hide it."""

    def clips(bundle: Path) -> list[str]:
        graph = onnx.load(bundle / "transformer.onnx", load_external_data=False).graph
        return [node.op_type for node in graph.node if node.op_type in ("Clip", "Max", "Min")]

    assert clips(fp16_bundle) == ["Max", "Min"] * 3
    assert clips(tiny_bundle) == []
