"""Prompts of another length than the tokenizer's limit, as `--max-sequence-length` asks for, against diffusers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
diffusers = pytest.importorskip("diffusers")

from kontext.decibels import decibels  # noqa: E402
from kontext.export.bundle.tokenizer_files import read_tokenizers  # noqa: E402
from kontext.export.calibration.calibrate import outline_bundle  # noqa: E402
from kontext.export.calibration.watched_networks import WatchedNetworks  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402
from kontext.quant.statistics import Statistics  # noqa: E402
from kontext.runtime import Pipeline  # noqa: E402
from kontext.runtime.tokens import pack  # noqa: E402


@pytest.mark.parametrize("tokens", [8, 40])
def test_prompts_of_another_length_are_those_of_diffusers(tiny_checkpoint: Path, tokens: int) -> None:
    """Latents after four steps, with 8 tokens, which cut the prompt, and with 40; the tokenizer's limit is 24."""
    diffusers = pytest.importorskip("diffusers")
    prompt = "make the red circle in the middle blue and the background white"
    checkpoint = Checkpoint.open(Origin(tiny_checkpoint, max_sequence_length=tokens))
    recipe = choose_recipe(tuple(NETWORKS), checkpoint.parameters(), "fp32")
    seen: list[np.ndarray] = []
    with outline_bundle(checkpoint, recipe, read_tokenizers(checkpoint)) as bundle:
        assert bundle.tokenizers["t5"].max_length == tokens
        pipeline = Pipeline(bundle, WatchedNetworks(checkpoint, recipe, Statistics()))
        with contextlib.nullcontext() if tokens == 40 else pytest.warns(UserWarning, match="T5's 8 tokens"):
            pipeline.edit(
                None,
                prompt,
                steps=4,
                guidance=3.0,
                seed=7,
                size=(128, 128),
                callback=lambda *at: seen.append(at[2]),
            )
    theirs = diffusers.FluxKontextPipeline.from_pretrained(tiny_checkpoint)
    expected = theirs(
        prompt=prompt,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
        width=128,
        height=128,
        max_area=128 * 128,
        max_sequence_length=tokens,
        output_type="latent",
        _auto_resize=False,
    ).images.numpy()
    latents = pack(seen[-1])
    error = float(np.square(latents.astype(np.float64) - expected).sum())
    assert decibels(float(np.square(expected, dtype=np.float64).sum()), error) >= 80
