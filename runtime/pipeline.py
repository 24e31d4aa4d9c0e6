"""An edit from end to end: encode text and references, compute all modulations, integrate, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import KontextError
from . import noise, request
from .backends import BACKENDS, ENGINE_DEVICES
from .bundle import Bundle
from .images import Size, to_array, to_pictures
from .request import Images, Reference, Request, Row
from .sampler import euler, schedule, timesteps
from .tokenizer import PromptTokenizer
from .tokens import pack, positions, rope_tables, unpack

Array = NDArray[np.float32]
StepCallback = Callable[[int, int, Array], object]
"""Told (steps done, steps in all, latents [batch, channels, h, w]) after each step; raising stops the edit."""

InputFilter = Callable[[Sequence[Image.Image], str], None]
"""Sees the references and the prompt of one edit before anything runs; raises KontextError to refuse it."""

OutputFilter = Callable[[Image.Image], Image.Image]
"""Sees each finished picture; returns it, or what is to be shown instead, or raises KontextError."""

LARGE_WEIGHTS = 2 << 30
"""Bytes of weights from which on a pipeline holds only the network that is running, unless told otherwise."""


class Backend(Protocol):
    """What runs the six graphs; inputs and outputs are fp32 (ids int64), named as in docs/bundle.md."""

    def hold(self, arrays: dict[str, Any]) -> dict[str, Any]: ...

    def run(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]: ...

    def release(self, *graphs: str) -> None: ...


class Pipeline:
    """A bundle ready to edit. Not safe for several threads at once; one pipeline each is."""

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
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        device: str = "auto",
        backend: str = "onnxruntime",
        offload: bool = False,
        weight_budget: int | None = None,
        compile: bool = False,
        cache: float | None = None,
        reuse_reference: int | None = None,
        verify: bool = False,
        low_memory: bool | None = None,
        threads: int | None = None,
        input_filter: InputFilter | None = None,
        output_filter: OutputFilter | None = None,
    ) -> Pipeline:
        """Opens a bundle for editing; its networks are loaded when the first edit needs them.

        Args:
            bundle: its folder.
            device: auto, cpu, cuda, or rtx or tensorrt for the bundle's compiled engines.
            backend: onnxruntime, or torch, which needs PyTorch and runs the transformer on Triton kernels.
            offload: with the torch backend, keep the transformer in host memory and copy each block to the GPU while
                the one before it computes.
            weight_budget: with rtx or tensorrt, bytes of the GPU for the weights of each engine that was built with
                weight streaming, the transformer's among them; the others are streamed from host memory in every
                run. None: as many as there is room for.
            compile: with the torch backend, let torch.compile make the code of the transformer's blocks.
            cache: with the torch backend, an approximation: at a step where the first block's effect on the target
                differs by no more than this share (0.1) from that at the last step computed in full, take the other
                blocks' effect from there.
            reuse_reference: with the torch backend, an approximation: compute the references' tokens every so many
                steps only, and keep their keys and values between.
            verify: compare every file's SHA-256 first.
            low_memory: drop each network after its part of an edit, so that the peak is that of the largest one
                instead of the sum; the next edit loads them again. None: from 2 GiB of weights on, and for bundles made
                to fit a memory budget.
            threads: cores to use on the CPU; None for all that this process may use.
            input_filter, output_filter: content filters. FLUX.1 [dev]'s licence asks those who deploy it for
                them; none is built in.

        Raises:
            KontextError: not a bundle, or not whole; no such device or backend, or it cannot do what is asked.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if verify:
            opened.verify()
        if low_memory is None:  # a bundle made for a memory budget was planned so
            low_memory = opened.weight_bytes >= LARGE_WEIGHTS or "plan" in opened.manifest
        torch_only = {
            "offload": offload,
            "compile": compile,
            "cache": cache,
            "reuse_reference": reuse_reference,
        }
        return cls(
            opened,
            make_backend(opened, backend, device, threads, low_memory, weight_budget, torch_only),
            low_memory=low_memory,
            input_filter=input_filter,
            output_filter=output_filter,
        )

    @overload
    def edit(
        self,
        image: Images,
        prompt: str,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        size: Size | None = None,
        num_images: Literal[1] = 1,
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> Image.Image: ...

    @overload
    def edit(
        self,
        image: Images,
        prompt: list[str] | tuple[str, ...],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        size: Size | None = None,
        num_images: int = 1,
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> list[Image.Image]: ...

    @overload
    def edit(
        self,
        image: Images,
        prompt: str,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        size: Size | None = None,
        num_images: int = 1,
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> Image.Image | list[Image.Image]: ...

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
            image: the reference; a list for several references, whose sizes may differ; None to draw from the
                prompt alone. With a list of prompts: one picture for all of them, or a list of as many entries,
                each a picture, a list of pictures, or None.
            prompt: the instruction; a list edits a batch. Rows of different sizes run one after the other.
            steps, guidance: as the bundle says unless given.
            seed: of the first picture; the next ones take the next seeds, and each is the picture that its seed
                gives alone. The noise is that of `torch.Generator("cpu").manual_seed(seed)`.
            size: (width, height) of the output, multiples of the bundle's `size_multiple`; by default the
                preferred size nearest to the first reference's aspect, or the square one without a reference.
            num_images: pictures for each prompt.
            callback: called after each step.
            progress: show a bar on stderr.

        Returns:
            A picture, or a list for a list of prompts or `num_images` above 1 (prompt by prompt).

        Raises:
            KontextError: what was asked for makes no sense; the message says what would.
        """
        asked = request.build(self.bundle.sampler, image, prompt, steps, guidance, seed, size, num_images)
        if self.input_filter is not None:
            for row in asked.rows[::num_images]:
                self.input_filter([reference.picture for reference in row.references], row.prompt)
        pictures = self.make(asked, callback, progress)
        if self.output_filter is not None:
            pictures = [self.output_filter(picture) for picture in pictures]
        return pictures[0] if isinstance(prompt, str) and num_images == 1 else pictures

    def make(self, asked: Request, callback: StepCallback | None, progress: bool) -> list[Image.Image]:
        """The pictures of a request, in the order of its rows."""
        batches = asked.batches()
        total = asked.steps * len(batches)
        texts = self.encode_prompts(asked.rows)
        references = self.encode_references(asked.rows)
        pictures: dict[int, Image.Image] = {}
        with step_bar(total, progress) as advance:
            for number, batch in enumerate(batches):
                before = number * asked.steps

                def told(step: int, latents: Array, before: int = before) -> None:
                    advance()
                    if callback is not None:
                        callback(before + step, total, latents)

                rows = [asked.rows[index] for index in batch]
                latents = self.sample(rows, asked, texts, references, told)
                pictures.update(zip(batch, self.decode(latents), strict=True))
        return [pictures[index] for index in range(len(asked.rows))]

    def sample(
        self,
        rows: Sequence[Row],
        asked: Request,
        texts: dict[str, tuple[Array, Array]],
        references: dict[tuple[int, Size], Array],
        told: Callable[[int, Array], object],
    ) -> Array:
        """Final latents [rows, channels, h, w] of rows of one shape."""
        latent = self.bundle.autoencoder
        h, w = (side // latent.downscale for side in reversed(rows[0].size))
        noises = [noise.randn(row.seed, (1, latent.latent_channels, h, w)) for row in rows]
        target = pack(np.concatenate(noises))
        reference = target[:, :0]
        if rows[0].references:
            tokens = [[references[key(each)] for each in row.references] for row in rows]
            reference = np.concatenate([np.concatenate(each, axis=1) for each in tokens])
        text = np.concatenate([texts[row.prompt][1] for row in rows])
        times = schedule(asked.steps, target.shape[1], self.bundle.sampler)
        modulations = self.modulations(timesteps(times[:-1]), asked.guidance, rows, texts)
        side = 2 * latent.downscale  # of a token, in pixels
        grids = [(height // side, width // side) for width, height in rows[0].shape]
        transformer = self.bundle.transformer
        cos, sin = rope_tables(positions(text.shape[1], grids), transformer.axes_dim, transformer.theta)
        held = self.backend.hold({"reference": reference, "text": text, "rope_cos": cos, "rope_sin": sin})
        steps = [
            self.backend.hold({name: each[step] for name, each in modulations.items()})
            for step in range(asked.steps)
        ]

        def velocity(step: int, x: Array) -> Array:
            inputs = {"target": x, **held, **steps[step]}
            result: Array = self.backend.run("transformer", inputs)["velocity"]
            return result

        target = euler(target, times, velocity, lambda step, x: told(step, unpack(x, h, w)))
        if self.low_memory:
            self.backend.release("transformer")
        if not np.isfinite(target).all():
            raise KontextError(
                "the model's output is not finite: its weights are damaged, or its number format is too narrow"
            )
        return unpack(target, h, w)

    def encode_prompts(self, rows: Sequence[Row]) -> dict[str, tuple[Array, Array]]:
        """Each prompt's pooled vector [1, pooled_dim] and sequence [1, text_tokens, text_dim]."""
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        pooled = self.stage("text_encoder", {"input_ids": self.clip(prompts)})["pooled"]
        text = self.stage("text_encoder_2", {"input_ids": self.t5(prompts)})["text"]
        return {prompt: (pooled[i : i + 1], text[i : i + 1]) for i, prompt in enumerate(prompts)}

    def encode_references(self, rows: Sequence[Row]) -> dict[tuple[int, Size], Array]:
        """The tokens [1, tokens, channels] of each different reference, encoded one at a time."""
        tokens: dict[tuple[int, Size], Array] = {}
        for reference in (each for row in rows for each in row.references):
            if key(reference) not in tokens:
                inputs = {"image": to_array(reference.picture, reference.size)}
                tokens[key(reference)] = pack(self.backend.run("vae_encoder", inputs)["latents"])
        if self.low_memory:
            self.backend.release("vae_encoder")
        return tokens

    def modulations(
        self, times: Array, guidance: float, rows: Sequence[Row], texts: dict[str, tuple[Array, Array]]
    ) -> dict[str, Array]:
        """All steps' modulations at once: name → [steps, rows, …]. The network is not needed in the loop."""
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        steps, count = len(times), len(prompts)
        pooled = np.concatenate([texts[prompt][0] for prompt in prompts])
        inputs = {
            "timestep": np.repeat(times, count),
            "guidance": np.full(steps * count, guidance, np.float32),
            "pooled": np.tile(pooled, (steps, 1)),
        }
        outputs = self.stage("modulation", inputs)
        picked = [prompts.index(row.prompt) for row in rows]
        each_step = {name: value.reshape(steps, count, *value.shape[1:]) for name, value in outputs.items()}
        return {name: value[:, picked] for name, value in each_step.items()}

    def decode(self, latents: Array) -> list[Image.Image]:
        """Pictures of latents [rows, channels, h, w], one at a time: here a batch costs memory and no less time."""
        pictures: list[Image.Image] = []
        for row in range(len(latents)):
            image = self.backend.run("vae_decoder", {"latents": latents[row : row + 1]})["image"]
            pictures += to_pictures(image)
        if self.low_memory:
            self.backend.release("vae_decoder")
        return pictures

    def stage(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Runs a graph that an edit needs once."""
        outputs = self.backend.run(graph, inputs)
        if self.low_memory:
            self.backend.release(graph)
        return outputs


def make_backend(
    bundle: Bundle,
    backend: str,
    device: str,
    threads: int | None,
    low_memory: bool,
    weight_budget: int | None,
    torch_only: dict[str, Any],
) -> Backend:
    """The engine called `backend` on `device`; nothing of another one is imported. The torch backend has options that
    are `torch_only`."""
    if backend not in BACKENDS:
        raise KontextError(f"backend {backend!r} is not known: choose from {', '.join(BACKENDS)}")
    if weight_budget is not None and (backend == "torch" or device not in ENGINE_DEVICES):
        raise KontextError("a weight budget is for compiled engines: add --device rtx or --device tensorrt")
    if backend == "torch":
        try:
            from .backends.torch.backend import Options, TorchBackend
        except ModuleNotFoundError as fault:
            if fault.name != "torch":
                raise
            raise KontextError(
                "the torch backend needs PyTorch: pip install 'kontext-export[export,gpu]'"
            ) from None
        return TorchBackend(bundle, device, Options(**torch_only))
    for name, value in torch_only.items():
        if value not in (None, False):
            raise KontextError(f"{name} is the torch backend's: add --backend torch")
    if device in ENGINE_DEVICES:
        from .backends.tensorrt.backend import TensorRTBackend

        return TensorRTBackend(bundle, device, weight_budget=weight_budget)
    from .backends.onnxruntime import OnnxRuntimeBackend

    graphs = {name: entry.path for name, entry in bundle.graphs.items()}
    return OnnxRuntimeBackend(
        graphs, device, threads=threads, files=bundle.linked_files, low_memory=low_memory
    )


def key(reference: Reference) -> tuple[int, Size]:
    """Tells references apart while an edit runs."""
    return id(reference.picture), reference.size


@contextmanager
def step_bar(steps: int, show: bool) -> Iterator[Callable[[], object]]:
    if not show:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=steps, unit="step") as bar:
        yield bar.update
