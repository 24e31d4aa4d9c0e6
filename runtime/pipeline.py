"""An edit from end to end: encode text and references, compute all modulations, integrate, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import KontextError
from . import noise
from .bundle import Bundle
from .images import Size, preferred_size, to_array, to_pictures, upright_rgb
from .sampler import euler, schedule
from .tokenizer import PromptTokenizer
from .tokens import pack, positions, rope_tables, unpack

Array = NDArray[np.float32]
Images = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None
StepCallback = Callable[[int, int, Array], object]
"""Told (steps done, steps in all, packed latents) after each step; raising in it stops the edit."""

InputFilter = Callable[[Sequence[Image.Image], str], None]
"""Sees one edit's references and its prompt; raises to refuse."""

OutputFilter = Callable[[Image.Image], Image.Image]
"""Sees each finished picture; returns it, or what is to be shown instead, or raises."""


class Backend(Protocol):
    """What runs the six graphs; inputs and outputs are fp32 (ids int64), named as in docs/bundle.md."""

    def hold(self, arrays: dict[str, Any]) -> dict[str, Any]: ...

    def run(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]: ...

    def release(self, *graphs: str) -> None: ...


@dataclass(frozen=True)
class Request:
    """What `edit` was asked for, checked and with every default filled in; one row a picture to make."""

    prompts: list[str]
    references: list[list[Image.Image]]
    seeds: list[int]
    size: Size
    steps: int
    guidance: float


class Pipeline:
    """A bundle ready to edit.

    `low_memory` drops each network after its part of an edit (its session is made again for the next edit), so that the
    peak is that of the largest one instead of the sum.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        low_memory: bool = False,
        input_filter: InputFilter | None = None,
        output_filter: OutputFilter | None = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.low_memory = low_memory
        self.input_filter = input_filter
        self.output_filter = output_filter
        self.clip = PromptTokenizer(bundle.tokenizers["clip"], "CLIP")
        self.t5 = PromptTokenizer(bundle.tokenizers["t5"], "T5")

    @classmethod
    def load(cls, bundle: str | Path | Bundle, *, device: str = "auto", verify: bool = False, **options: Any) -> Pipeline:
        """Opens a bundle for editing.

        Args:
            bundle: its folder.
            device: auto, cpu, cuda or tensorrt.
            verify: compare every file's SHA-256 first.
            options: `low_memory`, `input_filter`, `output_filter`.

        Raises:
            KontextError: not a bundle, or not whole; no such device.
        """
        from .backends.onnxruntime import OnnxRuntimeBackend

        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if verify:
            opened.verify()
        return cls(opened, OnnxRuntimeBackend({name: entry.path for name, entry in opened.graphs.items()}, device), **options)

    def edit(
        self,
        image: Images,
        prompt: str | Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        size: Size | None = None,
        num_images: int = 1,
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> Image.Image | list[Image.Image]:
        """Edits `image` as `prompt` says.

        Args:
            image: the reference; a list for several references; None to draw from the prompt alone. With a list of
                prompts, a list of as many entries: each one picture or a list of pictures.
            prompt: the instruction; a list edits a batch.
            steps, guidance: as the bundle says unless given.
            seed: of the first picture; the next ones take the next seeds. The same seed gives diffusers' noise.
            size: (width, height) of the output, multiples of the bundle's `size_multiple`; by default the preferred
                size nearest to the first reference's aspect, or the most square one without a reference.
            num_images: pictures for each prompt.
            callback: called after each step.
            progress: show a bar.

        Returns:
            A picture, or a list for several prompts or `num_images` above 1 (prompt by prompt).

        Raises:
            KontextError: what was asked for makes no sense; the message says what would.
        """
        request = self.check(image, prompt, steps, guidance, seed, size, num_images)
        with step_bar(request.steps, progress) as advance:
            latents = self.sample(request, chain(callback, advance))
        pictures = to_pictures(self.stage("vae_decoder", {"latents": latents})["image"])
        if self.output_filter is not None:
            pictures = [self.output_filter(picture) for picture in pictures]
        return pictures[0] if isinstance(prompt, str) and num_images == 1 else pictures

    def check(
        self,
        image: Images,
        prompt: str | Sequence[str],
        steps: int | None,
        guidance: float | None,
        seed: int,
        size: Size | None,
        num_images: int,
    ) -> Request:
        settings = self.bundle.sampler
        steps = settings.steps if steps is None else steps
        guidance = settings.guidance if guidance is None else guidance
        if steps < 1:
            raise KontextError(f"steps must be 1 or more, not {steps}")
        if not np.isfinite(guidance):
            raise KontextError(f"guidance must be a finite number, not {guidance}")
        if num_images < 1:
            raise KontextError(f"num_images must be 1 or more, not {num_images}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise KontextError("there is no prompt")
        references = references_of(image, prompts, isinstance(prompt, str))
        if len({len(each) for each in references}) > 1:
            raise KontextError("every prompt of a batch needs the same number of references")
        if self.input_filter is not None:
            for pictures, text in zip(references, prompts, strict=True):
                self.input_filter(pictures, text)
        rows = [(text, pictures) for text, pictures in zip(prompts, references, strict=True) for _ in range(num_images)]
        return Request(
            prompts=[text for text, _ in rows],
            references=[pictures for _, pictures in rows],
            seeds=[seed + row for row in range(len(rows))],
            size=self.output_size(size, references[0]),
            steps=steps,
            guidance=guidance,
        )

    def output_size(self, size: Size | None, references: Sequence[Image.Image]) -> Size:
        settings = self.bundle.sampler
        if size is None:
            if references:
                return preferred_size(references[0], settings.preferred_sizes)
            return min(settings.preferred_sizes, key=lambda each: abs(each[0] - each[1]))
        multiple = settings.size_multiple
        if any(side < multiple or side % multiple for side in size):
            raise KontextError(f"size {size[0]}x{size[1]} must be multiples of {multiple}")
        return size

    def sample(self, request: Request, callback: StepCallback | None) -> Array:
        """Final latents [rows, channels, h, w] of a request."""
        latent = self.bundle.autoencoder
        pooled, text = self.encode_prompts(request.prompts)
        reference, grids = self.encode_references(request.references)
        width, height = request.size
        h, w = height // latent.downscale, width // latent.downscale
        shape = (1, latent.latent_channels, h, w)
        latents = pack(np.concatenate([noise.randn(seed, shape) for seed in request.seeds]))
        if reference is None:
            reference = latents[:, :0]
        times = schedule(request.steps, latents.shape[1], self.bundle.sampler)
        modulations = self.modulations(times[:-1], request.guidance, pooled)
        ids = positions(text.shape[1], [(h // 2, w // 2), *grids])
        cos, sin = rope_tables(ids, self.bundle.transformer.axes_dim, self.bundle.transformer.theta)
        held = self.backend.hold({"reference": reference, "text": text, "rope_cos": cos, "rope_sin": sin})

        def velocity(step: int, x: Array) -> Array:
            inputs = {"target": x, **held, **{name: rows[step] for name, rows in modulations.items()}}
            return self.backend.run("transformer", inputs)["velocity"]

        latents = euler(latents, times, velocity, callback)
        if self.low_memory:
            self.backend.release("transformer")
        return unpack(latents, h, w)

    def encode_prompts(self, prompts: list[str]) -> tuple[Array, Array]:
        """Pooled [rows, pooled_dim] and sequence [rows, text_tokens, text_dim]; each different prompt is encoded once."""
        unique = list(dict.fromkeys(prompts))
        rows = [unique.index(prompt) for prompt in prompts]
        pooled = self.stage("text_encoder", {"input_ids": self.clip(unique)})["pooled"]
        text = self.stage("text_encoder_2", {"input_ids": self.t5(unique)})["text"]
        return pooled[rows], text[rows]

    def encode_references(self, references: list[list[Image.Image]]) -> tuple[Array | None, list[tuple[int, int]]]:
        """All references' tokens [rows, tokens, channels], one after the other, and their grids; None without any.

        The rows of a batch share one sequence length: the k-th references take the size of the first row's.
        """
        tokens, grids = [], []
        scale = self.bundle.autoencoder.downscale
        for index in range(len(references[0])):
            size = preferred_size(references[0][index], self.bundle.sampler.preferred_sizes)
            encoded: dict[int, Array] = {}  # rows often share a picture
            for row in references:
                if id(row[index]) not in encoded:
                    inputs = {"image": to_array(row[index], size)}
                    encoded[id(row[index])] = self.backend.run("vae_encoder", inputs)["latents"]
            latents = np.concatenate([encoded[id(row[index])] for row in references])
            tokens.append(pack(latents))
            grids.append((size[1] // scale // 2, size[0] // scale // 2))
        if self.low_memory:
            self.backend.release("vae_encoder")
        return (np.concatenate(tokens, axis=1) if tokens else None), grids

    def modulations(self, times: Array, guidance: float, pooled: Array) -> dict[str, Array]:
        """All steps' modulations at once: name → [steps, rows, …]. The network is not needed in the loop."""
        steps, rows = len(times), len(pooled)
        inputs = {
            "timestep": np.repeat(times, rows),
            "guidance": np.full(steps * rows, guidance, np.float32),
            "pooled": np.tile(pooled, (steps, 1)),
        }
        outputs = self.stage("modulation", inputs)
        return {name: value.reshape(steps, rows, *value.shape[1:]) for name, value in outputs.items()}

    def stage(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Runs a graph that an edit needs once."""
        outputs = self.backend.run(graph, inputs)
        if self.low_memory:
            self.backend.release(graph)
        return outputs


def references_of(image: Images, prompts: list[str], single: bool) -> list[list[Image.Image]]:
    """The references of each prompt, upright and in RGB."""
    if image is None:
        return [[] for _ in prompts]
    if single:
        return [[upright_rgb(each) for each in ([image] if isinstance(image, Image.Image) else image)]]  # type: ignore[arg-type]
    if isinstance(image, Image.Image):
        shared = upright_rgb(image)
        return [[shared] for _ in prompts]
    entries = list(image)
    if len(entries) != len(prompts):
        raise KontextError(f"{len(prompts)} prompts need as many pictures (or lists of pictures), not {len(entries)}")
    return [
        [upright_rgb(each) for each in ([entry] if isinstance(entry, Image.Image) else entry)] for entry in entries
    ]


def chain(first: StepCallback | None, second: Callable[[], object]) -> StepCallback:
    def both(step: int, steps: int, latents: Array) -> None:
        second()
        if first is not None:
            first(step, steps, latents)

    return both


@contextmanager
def step_bar(steps: int, show: bool) -> Iterator[Callable[[], object]]:
    if not show:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=steps, unit="step") as bar:
        yield bar.update
