"""Repainting: against diffusers' FluxKontextInpaintPipeline on the same random weights, and what is kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kontext.decibels import psnr
from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.backends.protocol import ForwardingBackend, SamplerStep
from kontext.runtime.inpainting import skipped_steps

from .drawings import smooth

PROMPT = "make the red circle blue"
SCENE = Path(__file__).parents[2] / "examples" / "pictures" / "recolour.png"


def ellipse(width: int, height: int, mode: str = "L") -> Image.Image:
    """A white ellipse on black, off the middle."""
    mask = Image.new(mode, (width, height))
    ImageDraw.Draw(mask).ellipse((width // 8, height // 4, width * 2 // 3, height * 7 // 8), fill="white")
    return mask


@pytest.fixture(scope="module")
def inpaint(tiny_checkpoint: Path) -> Any:
    """diffusers' pipeline, with the arguments that both take."""
    diffusers = pytest.importorskip("diffusers")
    import torch

    pipeline = diffusers.FluxKontextInpaintPipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)

    def call(image: Image.Image, mask: Image.Image, **options: Any) -> Image.Image:
        result = pipeline(
            image=image,
            mask_image=mask,
            prompt=PROMPT,
            guidance_scale=3.0,
            generator=torch.Generator("cpu").manual_seed(7),
            max_sequence_length=24,
            _auto_resize=False,
            **options,
        ).images[0]
        assert isinstance(result, Image.Image)
        return result

    return call


def edit(
    pipe: Pipeline, image: Image.Image | list[Image.Image], steps: int = 6, **options: Any
) -> Image.Image:
    result = pipe.edit(image, PROMPT, steps=steps, guidance=3.0, seed=7, **options)
    assert isinstance(result, Image.Image)
    return result


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    ("size", "mask"),
    [
        ((128, 128), ellipse(128, 128)),
        ((176, 96), ellipse(350, 190)),
        ((96, 176), ellipse(61, 112, "RGB")),
    ],
)
def test_same_picture_as_diffusers(
    pipe: Pipeline, inpaint: Any, size: tuple[int, int], mask: Image.Image, strength: float
) -> None:
    image = smooth(*size)
    ours = edit(pipe, image, mask=mask, strength=strength)
    theirs = inpaint(image, mask, strength=strength, num_inference_steps=6)
    assert ours.size == theirs.size == size
    assert psnr(ours, theirs) >= 50
    assert psnr(ours, edit(pipe, image)) < 40  # of random weights every edit changes everything


@pytest.mark.parametrize("strength", [0.55, 1.0])
def test_another_picture_is_repainted_than_the_reference(
    pipe: Pipeline, inpaint: Any, strength: float
) -> None:
    """diffusers' image and image_reference are `init_image` and `image`; the output's aspect is the former's."""
    image, reference, mask = smooth(176, 96), smooth(96, 176, 3), ellipse(176, 96)
    ours = edit(pipe, reference, init_image=image, mask=mask, strength=strength, steps=5)
    theirs = inpaint(image, mask, image_reference=reference, strength=strength, num_inference_steps=5)
    assert ours.size == theirs.size == (176, 96)
    assert psnr(ours, theirs) >= 50


def test_with_a_negative_prompt(pipe: Pipeline, inpaint: Any) -> None:
    image, mask = smooth(128, 128), ellipse(128, 128)
    ours = edit(pipe, image, mask=mask, strength=0.8, negative_prompt="a yellow star", true_cfg=3.0)
    theirs = inpaint(
        image,
        mask,
        strength=0.8,
        num_inference_steps=6,
        negative_prompt="a yellow star",
        true_cfg_scale=3.0,
    )
    assert psnr(ours, theirs) >= 50


def test_strength_without_a_mask_is_a_white_mask(pipe: Pipeline, inpaint: Any) -> None:
    image = smooth(128, 128)
    ours = edit(pipe, image, strength=0.4)
    theirs = inpaint(image, Image.new("L", (8, 8), 255), strength=0.4, num_inference_steps=6)
    assert psnr(ours, theirs) >= 50


def test_a_blurred_mask_is_diffusers(pipe: Pipeline, inpaint: Any) -> None:
    from diffusers.image_processor import VaeImageProcessor

    image, mask = smooth(128, 128), ellipse(200, 200)
    ours = edit(pipe, image, mask=mask, mask_blur=9)
    theirs = inpaint(image, VaeImageProcessor.blur(mask, 9), num_inference_steps=6)
    assert psnr(ours, theirs) >= 50


@pytest.mark.parametrize(
    ("steps", "strength"), [(28, 0.6), (10, 0.3), (28, 0.99), (4, 0.01), (7, 1.0), (50, 0.07)]
)
def test_steps_are_left_out_as_in_diffusers(tiny_checkpoint: Path, steps: int, strength: float) -> None:
    diffusers = pytest.importorskip("diffusers")

    class Recorded:
        order = 1
        timesteps = np.arange(steps)

    class Pipe:
        scheduler = Recorded()

    times, run = diffusers.FluxKontextInpaintPipeline.get_timesteps(Pipe(), steps, strength, "cpu")
    assert skipped_steps(steps, strength) == steps - run == steps - len(times)


def test_outside_the_mask_the_latents_stay_and_pixels_are_pasted_back(pipe: Pipeline) -> None:
    image, mask = smooth(128, 128), Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 32, 128))
    latents: list[np.ndarray] = []
    decoded = edit(pipe, image, mask=mask, callback=lambda _step, _steps, x: latents.append(x))
    original = encoded(pipe, image)
    assert np.allclose(latents[-1][:, :, :, 4:], original[:, :, :, 4:], atol=1e-5)
    assert np.abs(latents[-1][:, :, :, :4] - original[:, :, :, :4]).max() > 0.1
    pasted = edit(pipe, image, mask=mask, paste_back=True)
    assert np.array_equal(np.asarray(pasted)[:, 32:], np.asarray(image)[:, 32:])
    assert np.array_equal(np.asarray(pasted)[:, :32], np.asarray(decoded)[:, :32])


def encoded(pipe: Pipeline, image: Image.Image) -> np.ndarray:
    """Latents [1, channels, h, w] of a picture."""
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    latents: np.ndarray = pipe.backend.run("vae_encoder", {"image": pixels})["latents"]
    return latents


def test_outside_the_mask_the_picture_is_the_autoencoders(embedded: dict[str, Path]) -> None:
    """With trained weights: the embedded model repaints one place of a scene, and the rest is as far from the scene as
    the autoencoder alone is."""
    with Image.open(SCENE) as file:
        scene = file.convert("RGB")
    mask = Image.new("L", scene.size)
    mask.paste(255, (0, 0, scene.width // 3, scene.height // 3))
    pipe = Pipeline.load(embedded["fp32"], device="cpu")
    result = pipe.edit(scene, "turn the purple triangle pink", steps=4, mask=mask)
    alone = pipe.decode(encoded(pipe, scene))[0]
    outside = (slice(None), slice(scene.width // 2, None))
    own, edited, again = (Image.fromarray(np.asarray(each)[outside]) for each in (scene, result, alone))
    assert psnr(edited, own) > psnr(again, own) - 0.5
    assert psnr(edited, own) > 25


def test_pasting_back_is_feathered_by_the_blur(pipe: Pipeline) -> None:
    image, mask = smooth(128, 128), Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    decoded = edit(pipe, image, mask=mask, mask_blur=4, steps=2)
    pasted = edit(pipe, image, mask=mask, mask_blur=4, steps=2, paste_back=True)
    row, own, edited = (np.asarray(each).astype(int)[64] for each in (pasted, image, decoded))
    assert np.array_equal(row[96:], own[96:])
    assert np.array_equal(row[:32], edited[:32])
    between = row[60:68]
    assert ((between >= np.minimum(own, edited)[60:68]) & (between <= np.maximum(own, edited)[60:68])).all()


def test_rows_of_a_batch_are_those_of_each_alone(pipe: Pipeline) -> None:
    """Several prompts, pictures of several sizes and seeds, all with one mask."""
    images, mask = [smooth(128, 128), smooth(176, 96), smooth(128, 128, 5)], ellipse(128, 128)
    options: dict[str, Any] = {"mask": mask, "strength": 0.7, "steps": 3, "paste_back": True}
    with pytest.warns(UserWarning, match="another aspect than the picture of 176x96"):
        batch = pipe.edit(images, ["x", "y", "z"], seed=3, num_images=2, **options)
    for index, each in enumerate(batch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = pipe.edit(images[index // 2], "xyz"[index // 2], seed=3 + index, **options)
        assert psnr(each, alone) > 50


def test_several_references_and_the_first_is_repainted(pipe: Pipeline) -> None:
    first, second, mask = smooth(128, 128), smooth(96, 176, 2), ellipse(128, 128)
    result = edit(pipe, [first, second], mask=mask, paste_back=True)
    kept = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(result)[kept], np.asarray(first)[kept])
    assert psnr(result, edit(pipe, first, mask=mask, paste_back=True)) < 60


def test_only_the_steps_that_run_are_counted(pipe: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    steps: list[SamplerStep | None] = []

    class Spy(ForwardingBackend):
        def run(self, graph: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, Any]:
            if graph == "transformer":
                steps.append(step)
            return super().run(graph, inputs, step)

    spied = Pipeline(pipe.bundle, Spy(pipe.backend))
    edit(spied, smooth(128, 128), strength=0.5, callback=lambda step, total, _: seen.append((step, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert steps == [SamplerStep(0, 3), SamplerStep(1, 3), SamplerStep(2, 3)]


def test_a_picture_that_is_reference_and_repainted_is_encoded_once(pipe: Pipeline) -> None:
    graphs: list[str] = []

    class Spy(ForwardingBackend):
        def run(self, graph: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, Any]:
            graphs.append(graph)
            return super().run(graph, inputs, step)

    edit(Pipeline(pipe.bundle, Spy(pipe.backend)), smooth(128, 128), mask=ellipse(128, 128), steps=1)
    assert graphs.count("vae_encoder") == 1


def test_a_filter_sees_the_picture_that_is_repainted(pipe: Pipeline) -> None:
    seen: list[list[tuple[int, int]]] = []
    filtered = Pipeline(
        pipe.bundle, pipe.backend, input_filter=lambda images, _: seen.append([each.size for each in images])
    )
    small = smooth(64, 64)
    edit(filtered, smooth(128, 128), init_image=small, strength=0.5, steps=2)
    edit(filtered, small, strength=0.5, steps=2)
    assert seen == [[(128, 128), (64, 64)], [(64, 64)]]


def test_numpys_numbers_are_numbers(pipe: Pipeline) -> None:
    options: dict[str, Any] = {
        "strength": np.float32(0.5),
        "mask_blur": np.int64(2),
        "true_cfg": np.float32(2),
    }
    options |= {"cfg_until": np.float64(1), "negative_prompt": "x", "mask": MASK}
    made = edit(pipe, smooth(128, 128), steps=2, **options)
    plain = {name: each.item() if isinstance(each, np.generic) else each for name, each in options.items()}
    assert np.array_equal(np.asarray(made), np.asarray(edit(pipe, smooth(128, 128), steps=2, **plain)))


MASK = ellipse(128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "mask.png"}, "a mask must be a PIL.Image.Image, not str"),
        ({"mask": [MASK]}, "a mask must be a PIL.Image.Image, not list"),
        ({"mask": MASK, "image": None}, "a mask needs a picture to repaint: give image, or init_image"),
        ({"strength": 0.5, "image": None}, "a strength below 1 needs a picture to repaint"),
        ({"strength": 0}, "strength must be above 0 and at most 1, not 0"),
        ({"strength": 1.01}, "strength must be above 0 and at most 1"),
        ({"strength": float("nan")}, "strength must be above 0 and at most 1"),
        ({"strength": "0.5"}, "strength must be above 0 and at most 1, not '0.5'"),
        ({"strength": True}, "strength must be above 0 and at most 1"),
        ({"strength": 1e-20}, "strength 1e-20 leaves none of 2 steps"),
        ({"mask": MASK, "mask_blur": -1}, "mask_blur must be a whole number of pixels from 0 to 1000"),
        ({"mask": MASK, "mask_blur": 1.5}, "mask_blur must be a whole number"),
        ({"mask": MASK, "mask_blur": 10**9}, "mask_blur must be a whole number"),
        ({"mask_blur": 3}, "mask_blur needs a mask"),
        ({"paste_back": True}, "paste_back needs a mask"),
        ({"mask": MASK, "paste_back": 1}, "paste_back must be True or False, not 1"),
        ({"init_image": MASK}, "init_image needs a mask, or a strength below 1"),
        ({"init_image": "in.png", "mask": MASK}, "PIL.Image"),
    ],
)
def test_refuses_what_makes_no_sense(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    arguments = {"image": smooth(128, 128), **options}
    with pytest.raises(KontextError, match=message):
        pipe.edit(arguments.pop("image"), "x", steps=2, **arguments)


def small_dot() -> Image.Image:
    mask = Image.new("L", (128, 128))
    mask.paste(255, (10, 10, 14, 14))
    return mask


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": Image.new("L", (128, 128))}, "the mask is black: nothing is repainted"),
        ({"mask": Image.new("L", (128, 128), 255)}, "the mask is white everywhere: all of the picture"),
        ({"mask": small_dot()}, "white parts are too small: the model repaints squares of 8 pixels"),
        ({"mask": ellipse(176, 96)}, "the mask of 176x96 has another aspect than the picture of 128x128"),
        (
            {"mask": MASK, "size": (176, 96)},
            "the picture to repaint has 128x128, another aspect than the output of 176x96: it is stretched",
        ),
    ],
)
def test_odd_masks_are_questioned(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        pipe.edit(smooth(128, 128), "x", steps=1, **options)
