"""Edits end to end on a random model: against diffusers, against themselves, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.decibels import psnr
from kontext.errors import Cancelled, ComputationError, KontextError
from kontext.runtime import Pipeline
from kontext.runtime.backends.protocol import ForwardingBackend, SamplerStep
from kontext.runtime.tokens import positions, rope_tables

from .drawings import smooth


@pytest.mark.parametrize("size", [(128, 128), (176, 96), (80, 208)])
@pytest.mark.parametrize("with_reference", [True, False])
def test_same_picture_as_diffusers(
    pipe: Pipeline, reference: Any, size: tuple[int, int], with_reference: bool
) -> None:
    import torch

    width, height = size
    image = smooth(width, height) if with_reference else None
    ours = pipe.edit(image, "make the red circle blue", steps=6, guidance=3.0, seed=7, size=size)
    theirs = reference(
        image=image,
        prompt="make the red circle blue",
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
        width=width,
        height=height,
        max_area=width * height,
        max_sequence_length=24,
        _auto_resize=False,
    ).images[0]
    assert isinstance(ours, Image.Image)
    assert ours.size == size
    assert psnr(ours, theirs) >= 50


@pytest.mark.parametrize("size", [(160, 128), (224, 112), (64, 96)])
def test_a_reference_at_the_outputs_size_gives_diffusers_picture(
    pipe: Pipeline, reference: Any, size: tuple[int, int]
) -> None:
    """`size` has the picture's aspect, and is none of the model's preferred sizes."""
    import torch

    assert size not in pipe.bundle.sampler.preferred_sizes
    image = smooth(4 * size[0], 4 * size[1])
    ours = pipe.edit(image, "make the red circle blue", steps=6, guidance=3.0, seed=7, size=size)
    theirs = reference(
        image=image.resize(size, Image.Resampling.LANCZOS),
        prompt="make the red circle blue",
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
        width=size[0],
        height=size[1],
        max_area=size[0] * size[1],
        max_sequence_length=24,
        _auto_resize=False,
    ).images[0]
    assert ours.size == theirs.size == size
    assert psnr(ours, theirs) >= 50


def test_references_by_offset_have_image_index_1_and_stand_apart(pipe: Pipeline) -> None:
    tables: list[np.ndarray] = []

    class Spy(ForwardingBackend):
        def hold(self, arrays: Any) -> dict[str, Any]:
            tables.extend([arrays["rope_cos"]] if "rope_cos" in arrays else [])
            return super().hold(arrays)

    pictures = [smooth(128, 128), smooth(96, 176)]
    spied = Pipeline(pipe.bundle, Spy(pipe.backend))
    by_offset = spied.edit(pictures, "x", steps=1, reference_method="offset")
    grids, origins = [(8, 8), (8, 8), (11, 6)], [(0, 0, 0), (1, 0, 0), (1, 0, 8)]
    expected, _ = rope_tables(positions(24, grids, origins), (8, 12, 12), 10_000.0)
    assert np.array_equal(tables[0], expected)
    assert psnr(by_offset, spied.edit(pictures, "x", steps=1)) < 60


def test_output_takes_the_aspect_of_the_reference(pipe: Pipeline) -> None:
    result = pipe.edit(smooth(400, 208), "x", steps=1)
    assert isinstance(result, Image.Image)
    assert result.size in pipe.bundle.sampler.preferred_sizes
    assert abs(result.width / result.height - 400 / 208) < 0.3


def test_the_default_size_without_a_reference_is_square(pipe: Pipeline) -> None:
    result = pipe.edit(None, "x", steps=1)
    assert isinstance(result, Image.Image)
    assert result.size == (128, 128)


def test_several_pictures_are_those_of_their_seeds(pipe: Pipeline) -> None:
    image = smooth(128, 128)
    several = pipe.edit(image, "x", steps=3, seed=5, num_images=3)
    assert isinstance(several, list)
    assert len(several) == 3
    for index, each in enumerate(several):
        alone = pipe.edit(image, "x", steps=3, seed=5 + index)
        assert isinstance(alone, Image.Image)
        assert psnr(each, alone) > 50


def test_a_batch_is_its_edits_one_by_one(pipe: Pipeline) -> None:
    images = [smooth(128, 128, seed) for seed in (1, 2)]
    prompts = ["make it blue", "add a star"]
    batch = pipe.edit(images, prompts, steps=3, seed=9)
    assert isinstance(batch, list)
    for index in (0, 1):
        alone = pipe.edit(images[index], prompts[index], steps=3, seed=9 + index)
        assert isinstance(alone, Image.Image)
        assert psnr(batch[index], alone) > 50


def test_a_batch_of_different_sizes_is_its_edits_one_by_one(pipe: Pipeline) -> None:
    images: list[Any] = [
        smooth(128, 128, 1),
        smooth(176, 96, 2),
        None,
        [smooth(128, 128, 3), smooth(96, 176, 4)],
    ]
    prompts = ["make it blue", "add a star", "draw a star", "make it blue"]
    seen: list[tuple[int, int, tuple[int, ...]]] = []
    batch = pipe.edit(
        images, prompts, steps=2, seed=9, callback=lambda step, steps, x: seen.append((step, steps, x.shape))
    )
    assert [each.size for each in batch] == [(128, 128), (176, 96), (128, 128), (128, 128)]
    for index in range(4):
        assert psnr(batch[index], pipe.edit(images[index], prompts[index], steps=2, seed=9 + index)) > 50
    assert [(step, steps) for step, steps, _ in seen] == [(step, 8) for step in range(1, 9)]


def test_one_picture_for_a_batch_of_prompts(pipe: Pipeline) -> None:
    image = smooth(128, 128)
    batch = pipe.edit(image, ["make it blue", "add a star"], steps=2, seed=3, num_images=2)
    assert len(batch) == 4  # prompt by prompt
    assert psnr(batch[2], pipe.edit(image, "add a star", steps=2, seed=5)) > 50


def test_the_order_of_references_and_their_own_sizes(pipe: Pipeline) -> None:
    """Reference k has image index k in the positions, and its own size."""
    tables: list[np.ndarray] = []

    class Spy(ForwardingBackend):
        def hold(self, arrays: Any) -> dict[str, Any]:
            if "rope_cos" in arrays:  # and not one step's modulation
                tables.append(arrays["rope_cos"])
                assert arrays["reference"].shape == (1, 64 + 6 * 11, 64)
            return super().hold(arrays)

    Pipeline(pipe.bundle, Spy(pipe.backend)).edit([smooth(128, 128), smooth(96, 176)], "x", steps=1)
    grids = [(8, 8), (8, 8), (11, 6)]  # the target's and the references' rows and columns of tokens
    expected, _ = rope_tables(positions(24, grids), (8, 12, 12), 10_000.0)
    (cos,) = tables
    assert np.array_equal(cos, expected)


@pytest.mark.parametrize(
    "graph", ["text_encoder", "text_encoder_2", "vae_encoder", "modulation", "transformer", "vae_decoder"]
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_output_that_is_not_finite_is_an_error(pipe: Pipeline, graph: str, value: float) -> None:
    """Of any graph, and the error names it: a decoder's NaN would be a picture of noise."""

    class Broken(ForwardingBackend):
        def run(self, name: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, Any]:
            outputs = {key: output.copy() for key, output in super().run(name, inputs, step).items()}
            if name == graph:
                list(outputs.values())[-1].flat[-1] = value
            return outputs

    with pytest.raises(ComputationError, match=rf"the output of {graph} is not finite"):
        Pipeline(pipe.bundle, Broken(pipe.backend)).edit(smooth(128, 128), "x", steps=1)


@pytest.mark.parametrize(
    ("graph", "name", "change"),
    [
        ("text_encoder", "pooled", lambda value: value[:, :-1]),
        ("text_encoder_2", "text", lambda value: value[0]),
        ("vae_encoder", "latents", lambda value: value[:, :, :-1]),
        ("modulation", "final_modulation", lambda value: value[:-1]),
        ("modulation", "single_modulation", lambda value: np.float32(1)),
        ("transformer", "velocity", lambda value: value.astype(np.float64)),
        ("transformer", "velocity", None),
        ("vae_decoder", "image", lambda value: value[:, :, :, :64]),
        ("vae_decoder", "image", lambda value: (value * 100).astype(np.int32)),
    ],
)
def test_output_of_another_shape_or_type_is_an_error(
    pipe: Pipeline, graph: str, name: str, change: Callable[[np.ndarray], np.ndarray] | None
) -> None:
    """A decoder's picture of another size was saved, with exit code 0; others ended in numpy's tracebacks."""

    class Broken(ForwardingBackend):
        def run(self, running: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, Any]:
            outputs = super().run(running, inputs, step)
            if running == graph:
                value = outputs.pop(name)
                outputs |= {} if change is None else {name: change(value)}
            return outputs

    with pytest.raises(ComputationError, match=rf"{graph} is not a graph of this format: its output {name} "):
        Pipeline(pipe.bundle, Broken(pipe.backend)).edit(smooth(128, 128), "x", steps=1)


def test_a_nan_among_the_decoders_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    """No garbage picture with exit code 0: one line, and no file."""
    bundle = damaged(tiny_bundle, tmp_path)
    out = tmp_path / "out.png"
    command = ["-m", "kontext.runtime.cli", str(bundle), "--prompt", "x", "--steps", "1", "-o", str(out)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output of vae_decoder is not finite")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def damaged(bundle: Path, folder: Path) -> Path:
    """A copy with one NaN among the decoder's fp32 weights."""
    copy = shutil.copytree(bundle, folder / "damaged")
    file = copy / "weights" / "vae_decoder.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.array([np.nan], "<f4").tobytes()
    file.write_bytes(data)
    return copy


def test_modulation_runs_once_and_only_the_transformer_every_step(tiny_bundle: Path) -> None:
    """The order that `Backend` documents, and each step's number."""
    pipe = Pipeline.load(tiny_bundle, device="cpu")
    calls: list[tuple[str, SamplerStep | None]] = []

    class Counted(ForwardingBackend):
        def run(self, graph: str, inputs: Any, step: SamplerStep | None = None) -> dict[str, Any]:
            calls.append((graph, step))
            if graph == "modulation":
                assert len(inputs["timestep"]) == 5
            return super().run(graph, inputs, step)

    pipe.backend = Counted(pipe.backend)
    images = [smooth(128, 128), smooth(176, 96)]
    pipe.edit(images, ["x", "y"], steps=5, num_images=2)
    transformer = [("transformer", SamplerStep(index, 5)) for index in range(5)]
    a_size = [("modulation", None), *transformer, ("vae_decoder", None), ("vae_decoder", None)]
    once = [each for each in ("text_encoder", "text_encoder_2", "vae_encoder") for _ in range(2)]
    assert calls == [*((graph, None) for graph in once), *a_size, *a_size]


def test_a_second_reference_counts(pipe: Pipeline) -> None:
    one, two = smooth(128, 128, 1), smooth(96, 176, 2)
    single = pipe.edit(one, "x", steps=2)
    both = pipe.edit([one, two], "x", steps=2)
    swapped = pipe.edit([two, one], "x", steps=2, size=(128, 128))
    assert isinstance(single, Image.Image)
    assert isinstance(both, Image.Image)
    assert isinstance(swapped, Image.Image)
    assert both.size == single.size
    assert psnr(single, both) < 60
    assert psnr(swapped, both) < 60


def test_low_memory_changes_nothing_and_keeps_no_session(tiny_bundle: Path, pipe: Pipeline) -> None:
    frugal = Pipeline.load(tiny_bundle, device="cpu", low_memory=True)
    image = smooth(128, 128)
    one, other = frugal.edit(image, "x", steps=2), pipe.edit(image, "x", steps=2)
    assert np.array_equal(np.asarray(one), np.asarray(other))
    assert not frugal.backend.sessions  # type: ignore[attr-defined]


def test_callback_sees_every_step_and_can_stop(pipe: Pipeline) -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_two(step: int, steps: int, latents: np.ndarray) -> None:
        assert latents.shape == (1, 16, 16, 16)
        seen.append((step, steps))
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipe.edit(None, "x", steps=4, callback=stop_at_two)
    assert seen == [(1, 4), (2, 4)]


def test_a_callback_cancels_by_false_alone(pipe: Pipeline) -> None:
    with pytest.raises(Cancelled, match="stopped the edit after 2 of 4 steps"):
        pipe.edit(None, "x", steps=4, callback=lambda step, steps, latents: step < 2)
    with pytest.raises(Cancelled):
        pipe.edit(None, "x", steps=4, callback=lambda step, steps, latents: np.bool_(False))
    pipe.edit(None, "x", steps=1, callback=lambda step, steps, latents: 0)
    with pytest.raises(KontextError, match="callback must be a function"):
        pipe.edit(None, "x", callback=3)  # type: ignore[call-overload]


def test_an_output_filter_must_return_a_picture(tiny_bundle: Path) -> None:
    pipe = Pipeline.load(tiny_bundle, device="cpu", output_filter=lambda _picture: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ComputationError, match="output_filter returned NoneType: it must return the picture"):
        pipe.edit(None, "x", steps=1)


def test_filters_see_references_as_they_were_given(pipe: Pipeline) -> None:
    """Not the canvas that they are stitched to."""
    seen: list[tuple[int, int]] = []
    filtered = Pipeline(
        pipe.bundle, pipe.backend, input_filter=lambda images, _: seen.extend(each.size for each in images)
    )
    filtered.edit([smooth(64, 64), smooth(48, 80)], "x", steps=1, reference_method="stitch")
    assert seen == [(64, 64), (48, 80)]


def test_filters_see_inputs_and_outputs(tiny_bundle: Path) -> None:
    def refuse(images: Any, prompt: str) -> None:
        if "forbidden" in prompt:
            raise KontextError(f"refused with {len(images)} pictures")

    black = Image.new("RGB", (8, 8))
    pipe = Pipeline.load(tiny_bundle, device="cpu", input_filter=refuse, output_filter=lambda _picture: black)
    with pytest.raises(KontextError, match="refused with 1"):
        pipe.edit(smooth(128, 128), "forbidden", steps=1)
    assert pipe.edit(None, "fine", steps=1) is black


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of 1 or more"),
        ({"steps": -3}, "steps must be a whole number of 1 or more"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"guidance": float("nan")}, "from -1000 to 1000"),
        ({"num_images": 0}, "num_images"),
        ({"size": (100, 128)}, "multiples of 16"),
        ({"size": (0, 16)}, "must be above 0"),
        ({"size": (1 << 20, 1 << 20)}, "16 times as large"),
        ({"seed": -1}, "whole number from 0"),
        ({"seed": 2**64 - 1, "num_images": 2}, "whole number from 0"),
        ({"prompt": []}, "at least one prompt"),
        (
            {"prompt": ["a", "b"], "image": [Image.new("RGB", (8, 8))] * 3},
            "2 prompts need one picture for all or 2 entries, not 3",
        ),
        ({"image": ["not a picture"]}, "PIL.Image"),
        ({"image": [[Image.new("RGB", (8, 8))]]}, "PIL.Image"),
    ],
)
def test_refuses_what_makes_no_sense(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    request = {"image": None, "prompt": "x", "steps": 1, **arguments}
    with pytest.raises(KontextError, match=message):
        pipe.edit(request.pop("image"), request.pop("prompt"), **request)


def test_long_and_empty_prompts(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="T5's 24 tokens: its last"):
        pipe.edit(None, "make the red circle blue " * 20, steps=1)
    pipe.edit(None, "", steps=1)
