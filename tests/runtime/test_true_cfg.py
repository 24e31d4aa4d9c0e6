"""Negative prompts: against `true_cfg_scale` of diffusers' FluxKontextPipeline on the same random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.decibels import psnr
from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.backends.protocol import ForwardingBackend, SamplerStep
from kontext.runtime.tokens import pack
from kontext.runtime.true_cfg import TrueCfg

from .drawings import smooth

PROMPT, NEGATIVE = "make the red circle blue", "a yellow star"


@pytest.mark.parametrize("negative", [NEGATIVE, ""])
@pytest.mark.parametrize(("size", "scale"), [((128, 128), 4.0), ((176, 96), 1.5), (None, 2.0)])
def test_same_picture_as_diffusers(
    pipe: Pipeline, reference: Any, size: tuple[int, int] | None, scale: float, negative: str
) -> None:
    """`size` None: without a reference."""
    import torch

    image = None if size is None else smooth(*size)
    width, height = size or (128, 128)
    options: dict[str, Any] = {"negative_prompt": negative}
    ours = pipe.edit(image, PROMPT, steps=5, guidance=3.0, seed=7, true_cfg=scale, **options)
    theirs = reference(
        image=image,
        prompt=PROMPT,
        true_cfg_scale=scale,
        num_inference_steps=5,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
        width=width,
        height=height,
        max_area=width * height,
        max_sequence_length=24,
        _auto_resize=False,
        **options,
    ).images[0]
    assert isinstance(ours, Image.Image)
    assert psnr(ours, theirs) >= 50
    assert psnr(ours, pipe.edit(image, PROMPT, steps=5, guidance=3.0, seed=7)) < 40


class Recorder(ForwardingBackend):
    """Notes which graphs run, with how many rows."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self.runs: list[tuple[str, int]] = []

    def run(self, graph: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, Any]:
        self.runs.append((graph, len(next(iter(inputs.values())))))
        return super().run(graph, inputs, step)


def test_both_passes_are_one_batch_and_only_where_they_are_wanted(pipe: Pipeline) -> None:
    recorder = Recorder(pipe.backend)
    spied = Pipeline(pipe.bundle, recorder)
    spied.edit(smooth(128, 128), PROMPT, steps=4, negative_prompt=NEGATIVE, true_cfg=4, cfg_until=0.5)
    steps = [("transformer", rows) for rows in (2, 2, 1, 1)]
    texts = [("text_encoder", 1)] * 2 + [("text_encoder_2", 1)] * 2
    assert recorder.runs == [*texts, ("vae_encoder", 1), ("modulation", 8), *steps, ("vae_decoder", 1)]


def test_the_first_steps_have_it(pipe: Pipeline, reference: Any) -> None:
    """Up to there the latents are those with it all along; from there on the edit is diffusers' without it, which
    begins at those latents and that time."""
    import torch

    image, options = smooth(128, 128), {"negative_prompt": NEGATIVE, "true_cfg": 4.0, "guidance": 3.0}

    def latents(**more: Any) -> tuple[list[np.ndarray], Image.Image]:
        seen: list[np.ndarray] = []
        made = pipe.edit(
            image, PROMPT, steps=4, callback=lambda _step, _steps, x: seen.append(x), **options, **more
        )
        return seen, made

    whole, _ = latents()
    half, made = latents(cfg_until=0.5)
    assert np.allclose(whole[1], half[1], atol=1e-4)
    theirs = reference(
        image=image,
        prompt=PROMPT,
        sigmas=[0.5, 0.25],  # the last two of four, before they are shifted
        num_inference_steps=2,
        latents=torch.from_numpy(pack(half[1])),
        guidance_scale=3.0,
        width=128,
        height=128,
        max_area=128 * 128,
        max_sequence_length=24,
        _auto_resize=False,
    ).images[0]
    assert psnr(made, theirs) >= 50


@pytest.mark.parametrize(
    ("steps", "until", "guided"),
    [(28, 0.5, 14), (5, 0.5, 3), (3, 0.5, 2), (4, 0.01, 1), (10, 0.3, 3), (1, 1, 1)],
)
def test_how_many_steps_have_it(steps: int, until: float, guided: int) -> None:
    assert TrueCfg(4.0, until).guided(steps) == guided


def test_batches_with_a_negative_prompt_for_each(pipe: Pipeline) -> None:
    images, prompts, negatives = (
        [smooth(128, 128), smooth(128, 128, 1), smooth(176, 96)],
        ["x", "y", "z"],
        ["a", "b", "a"],
    )
    batch = pipe.edit(images, prompts, steps=2, seed=4, negative_prompt=negatives, true_cfg=3, num_images=2)
    for index, each in enumerate(batch):
        row = index // 2
        alone = pipe.edit(
            images[row], prompts[row], steps=2, seed=4 + index, negative_prompt=negatives[row], true_cfg=3
        )
        assert psnr(each, alone) > 50
    one = pipe.edit(images, prompts, steps=2, seed=4, negative_prompt="a", true_cfg=3)
    assert psnr(one[0], batch[0]) > 50


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_backend_runs_both_passes(pipe: Pipeline, tiny_bundle: Path, backend: str) -> None:
    """With a mask, since it changes what each step begins from."""
    pytest.importorskip(backend)
    other = Pipeline.load(tiny_bundle, device="openvino" if backend == "openvino" else "cpu", backend=backend)
    given: dict[str, Any] = {"negative_prompt": NEGATIVE, "true_cfg": 2.0, "cfg_until": 0.5}
    given |= {"mask": Image.linear_gradient("L"), "strength": 0.8, "steps": 5}
    image = smooth(128, 128)
    assert psnr(other.edit(image, PROMPT, **given), pipe.edit(image, PROMPT, **given)) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"true_cfg": 0.5}, "true_cfg must be a number from 1 to 1000, not 0.5"),
        ({"true_cfg": float("inf")}, "true_cfg must be a number from 1"),
        ({"true_cfg": float("nan")}, "true_cfg must be a number from 1"),
        ({"true_cfg": "4"}, "true_cfg must be a number from 1 to 1000, not '4'"),
        ({"true_cfg": True}, "true_cfg must be a number from 1"),
        ({"cfg_until": 0}, "cfg_until must be above 0 and at most 1, not 0"),
        ({"cfg_until": 1.5}, "cfg_until must be above 0 and at most 1"),
        ({"negative_prompt": b"x"}, "negative_prompt must be a text, or a list of texts, not b'x'"),
        ({"negative_prompt": 3}, "negative_prompt must be a text"),
        ({"negative_prompt": [None]}, "each negative prompt must be a text, not None"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt is a list of 2, and there are 1 prompts"),
    ],
)
def test_refuses_what_makes_no_sense(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError) as caught:
        pipe.edit(None, "x", steps=1, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"true_cfg": 4}, r'true_cfg 4 has no effect without a negative_prompt, which may be empty \(""\)'),
        ({"negative_prompt": "x"}, "negative_prompt has no effect without a true_cfg above 1"),
        ({"cfg_until": 0.5}, "cfg_until has no effect without a true_cfg above 1"),
    ],
)
def test_what_has_no_effect_is_said(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        without = pipe.edit(None, "x", steps=1, **options)
    assert np.array_equal(np.asarray(without), np.asarray(pipe.edit(None, "x", steps=1)))
