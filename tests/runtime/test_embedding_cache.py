"""Embeddings and latents that are kept: what leaves, what counts as the same input, and that pictures stay the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from kontext.runtime.embedding_cache import PROMPT, EmbeddingCache, reference_key

ENCODERS = ("text_encoder", "text_encoder_2", "vae_encoder")


class Encodings(ForwardingBackend):
    """Notes which encoders run."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.ran: list[str] = []

    def run(
        self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None
    ) -> dict[str, np.ndarray]:
        self.ran += [graph] if graph in ENCODERS else []
        return super().run(graph, inputs, step)


def watched(bundle: Path, **options: Any) -> tuple[Pipeline, list[str]]:
    pipe = Pipeline.load(bundle, device="cpu", **options)
    pipe.backend = watching = Encodings(pipe.backend)
    return pipe, watching.ran


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def pixels(pictures: Any) -> np.ndarray:
    return (
        np.asarray(pictures)
        if isinstance(pictures, Image.Image)
        else np.stack(list(map(np.asarray, pictures)))
    )


@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8)), max_size=30))
def test_the_least_recently_used_leave_and_bytes_stay_below_the_bound(
    capacity: int, asked: list[tuple[int, int]]
) -> None:
    """Beside a list that is searched: what was used last is at its end."""
    cache = EmbeddingCache(capacity)
    model: list[tuple[int, np.ndarray]] = []
    for number, count in asked:
        found = cache.find((PROMPT, bytes([number])))
        kept = next((entry for entry in model if entry[0] == number), None)
        assert (found is None) == (kept is None)
        if kept is not None and found is not None:
            assert found[0] is kept[1]
            model = [each for each in model if each[0] != number] + [kept]
        else:
            array = np.zeros(count, np.float32)
            cache.keep((PROMPT, bytes([number])), (array,))
            if array.nbytes <= capacity:
                model.append((number, array))
        while sum(array.nbytes for _, array in model) > capacity:
            model.pop(0)
        assert cache.used == sum(array.nbytes for _, array in model) <= capacity
    assert cache.hits.total() + cache.misses.total() == len(asked)


@pytest.mark.parametrize("capacity", [-1, 0.5, "256MB", True, None])
def test_a_bound_that_is_no_number_of_bytes(capacity: Any) -> None:
    with pytest.raises(KontextError, match="embedding_cache must be a whole number of bytes"):
        EmbeddingCache(capacity)


def test_references_are_told_apart_by_pixels_and_sizes() -> None:
    data = bytes(range(48))
    wide, square = Image.frombytes("RGB", (8, 2), data), Image.frombytes("RGB", (4, 4), data)
    keys = {reference_key(wide, (64, 64)), reference_key(square, (64, 64)), reference_key(square, (64, 96))}
    assert len(keys) == 3
    assert reference_key(square.copy(), (64, 64)) in keys


def test_a_second_edit_runs_no_encoder_and_makes_the_same_picture(tiny_bundle: Path) -> None:
    """Loading one would be most of the time, so `low_memory` must not even touch it."""
    for low_memory in (False, True):
        pipe, ran = watched(tiny_bundle, low_memory=low_memory)
        plain, always = watched(tiny_bundle, low_memory=low_memory, embedding_cache=0)
        for seed in (1, 2):
            references = [noise(128, 128, 3), noise(96, 176, 4)]  # other objects of the same pixels
            settings: dict[str, Any] = {"steps": 2, "seed": seed}
            ours = pipe.edit(references, "make the red circle blue", **settings)
            assert np.array_equal(
                pixels(ours), pixels(plain.edit(references, "make the red circle blue", **settings))
            )
        assert ran == [*ENCODERS, "vae_encoder"]
        assert len(always) == 2 * len(ran)
        assert pipe.embeddings.hits == {"prompt": 1, "reference": 2}
        assert plain.embeddings.used == 0 < pipe.embeddings.used


def test_a_picture_that_was_painted_on_is_another(tiny_bundle: Path) -> None:
    pipe, ran = watched(tiny_bundle)
    picture = noise(128, 128, 5)
    before = pipe.edit(picture, "x", steps=1)
    picture.paste((255, 0, 0), (0, 0, 64, 64))
    after = pipe.edit(picture, "x", steps=1)
    assert ran.count("vae_encoder") == 2
    assert np.array_equal(
        pixels(after), pixels(Pipeline.load(tiny_bundle, device="cpu").edit(picture, "x", steps=1))
    )
    assert not np.array_equal(pixels(before), pixels(after))


def test_prompts_of_the_same_tokens_are_the_same(tiny_bundle: Path) -> None:
    pipe, ran = watched(tiny_bundle)
    long = "make the red circle blue and remove the small green square " * 20
    with pytest.warns(UserWarning, match="longer than"):
        pipe.edit(None, [long, f"{long} and more"], steps=1)
    assert ran == ["text_encoder", "text_encoder_2"]
    with pytest.warns(UserWarning, match="longer than"):  # also of what is not encoded again
        pipe.edit(None, long, steps=1)


def test_a_prompt_is_encoded_as_if_it_were_alone(tiny_bundle: Path) -> None:
    """Bit for bit: what a batch leaves in the cache serves single edits."""
    prompts = ["x", "make the red circle blue", "turn the day into night", "add a yellow star"]
    pipe, _ = watched(tiny_bundle)
    pipe.edit(None, prompts, steps=1)
    alone = Pipeline.load(tiny_bundle, device="cpu", embedding_cache=0)
    for prompt in prompts:
        ours, theirs = pipe.edit(None, prompt, steps=1, seed=9), alone.edit(None, prompt, steps=1, seed=9)
        assert np.array_equal(pixels(ours), pixels(theirs))
    assert pipe.embeddings.hits["prompt"] == len(prompts)
