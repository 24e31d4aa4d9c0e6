"""An edit from end to end: encode text and references, compute all modulations, sample, decode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import Cancelled, ComputationError, KontextError
from . import noise
from .backends.options import AUTO, BackendOptions
from .backends.protocol import Backend, SamplerStep
from .backends.select import find_options, open_backend, open_fastest
from .bundle import OUTPUTS, Bundle
from .digest import check_digest
from .edit_metadata import edit_metadata, running_with
from .embedding_cache import DEFAULT_BYTES, EmbeddingCache, prompt_key, reference_key
from .graph_outputs import check_finite, take
from .images import Size, to_array, to_pictures
from .inpainting import Repaint, Repainting, RepaintOptions
from .lora import NO_LORAS, Loras, file_version, open_loras
from .masks import note_of
from .metadata import KEY, PictureDigest, Running
from .preview import draw_latents
from .reference_options import ReferenceSize
from .references import Reference
from .request import Images, Request, Row, build_request
from .sampler import destination, euler, schedule, timesteps
from .tokenizer import PromptTokenizer
from .tokens import pack, positions, rope_tables, unpack
from .true_cfg import CfgOptions

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from .backends.choose import Choice

    class EditOptions(TypedDict, total=False):
        """What `Pipeline.edit` takes whatever it returns, for its overloads."""

        steps: int | None
        guidance: float | None
        seed: int | Sequence[int]
        size: Size | None
        reference_method: str | None
        reference_size: ReferenceSize
        mask: Image.Image | None
        mask_blur: int
        strength: float
        init_image: Image.Image | None
        paste_back: bool
        negative_prompt: str | Sequence[str] | None
        true_cfg: float
        cfg_until: float
        callback: StepCallback | None
        loras: LoraFiles | None
        progress: bool


Array = NDArray[np.float32]
LoraFiles = Sequence[str | Path | tuple[str | Path, float]]
"""Files that `kontext-export lora` has made ready, each alone or with its weight, 1 by default."""

StepCallback = Callable[[int, int, Array], object]
"""Called with (steps done, steps in all, latents [batch, channels, h, w]) after each step; returning False stops the
edit."""

InputFilter = Callable[[Sequence[Image.Image], str], None]
"""Called with the pictures (references, then an `init_image`) and the prompt of an edit before anything runs; raises
KontextError to refuse it."""

OutputFilter = Callable[[Image.Image], Image.Image]
"""Called with each finished picture; returns it or another picture, or raises KontextError."""

LARGE_WEIGHTS = 2 << 30
"""Bytes of weights from which on `low_memory` is the default."""


class Pipeline:
    """A bundle ready to edit. Not thread-safe: use one pipeline for each thread."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        low_memory: bool = False,
        input_filter: InputFilter | None = None,
        output_filter: OutputFilter | None = None,
        embedding_cache: int = 0,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.choice: Choice | None = None
        self.running = Running(type(backend).__name__, AUTO, {})
        self.low_memory = low_memory
        self.input_filter = input_filter
        self.output_filter = output_filter
        self.embeddings = EmbeddingCache(embedding_cache)
        self.clip = PromptTokenizer(bundle.tokenizers["clip"], "CLIP", bundle.content)
        self.t5 = PromptTokenizer(bundle.tokenizers["t5"], "T5", bundle.content)
        self.loras = self.latest_loras = open_loras(bundle, [])
        self.lora_versions: Sequence[tuple[Path, float, object]] = []
        """File, weight and the file's version of each of `latest_loras`."""
        self.estimate: Callable[[], Array] | None = None
        """During an edit: the latents that the last step's velocity leads to."""

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        device: str = "auto",
        backend: str | BackendOptions = AUTO,
        verify: bool = False,
        require_digest: str | None = None,
        allow_links: bool = False,
        low_memory: bool | None = None,
        input_filter: InputFilter | None = None,
        output_filter: OutputFilter | None = None,
        embedding_cache: int = DEFAULT_BYTES,
    ) -> Pipeline:
        """Opens a bundle for editing; its networks are loaded when the first edit needs them.

        Args:
            bundle: its folder.
            device: auto, cpu, cuda, or rtx or tensorrt for the bundle's compiled engines.
            backend: "auto": the fastest that works here if the device is auto too (`backends.choose`), else ONNX
                Runtime or the device's own; "onnxruntime", "torch" (needs PyTorch; runs the transformer on Triton
                kernels), or a backend's options: `OnnxRuntimeOptions`, `TorchOptions` or `TensorRTOptions`.
            verify: compare every file's SHA-256 with the manifest's first. Without it, what is executed is compared
                when it is loaded (graphs, tokenizers, engines, kernels), and weights are not.
            require_digest: the bundle's digest, as `kontext-export digest` prints it; refuse any other bundle, and
                compare the SHA-256 of every file that is used.
            allow_links: take weights from the files outside the folder that a bundle names although you have not
                exported it on this machine.
            low_memory: drop each network after its part of an edit: the peak is then that of the largest network and
                not the sum, and the next edit loads them again. None: from 2 GiB of weights on, and for bundles made
                to fit a memory budget.
            input_filter, output_filter: content filters. FLUX.1 [dev]'s licence asks those who deploy it for them;
                none is built in.
            embedding_cache: bytes of host memory for what the encoders made of earlier prompts and references, which
                do not run again for them; pictures stay the same. 0: keep nothing.

        Raises:
            KontextError: not a bundle, not a whole one or not the required one; no such device or backend, or options
                that it cannot fulfil.
        """
        if isinstance(bundle, Bundle):
            opened = bundle
            if require_digest is not None:
                check_digest(require_digest, opened.digest, opened.folder)
        else:
            opened = Bundle.open(bundle, digest=require_digest, allow_links=allow_links)
        options = None
        if (backend, device) != (AUTO, AUTO):
            options = find_options(backend, device)
            options.check(device, opened)
        if verify or require_digest is not None:
            opened.verify(compiled=verify)
        if low_memory is None:  # a plan for a memory budget assumes it
            low_memory = opened.weight_bytes >= LARGE_WEIGHTS or "plan" in opened.manifest
        choice = None
        if options is None:
            running, choice = open_fastest(opened, low_memory=low_memory)
        else:
            running = open_backend(options, device, opened, low_memory=low_memory)
        pipeline = cls(
            opened,
            running,
            low_memory=low_memory,
            input_filter=input_filter,
            output_filter=output_filter,
            embedding_cache=embedding_cache,
        )
        pipeline.choice = choice
        if choice is not None:
            options, device = choice.way.options, choice.way.device
        if options is not None:
            pipeline.running = running_with(options, device, running)
        return pipeline

    @overload
    def edit(
        self, image: Images, prompt: str, *, num_images: Literal[1] = 1, **options: Unpack[EditOptions]
    ) -> Image.Image: ...

    @overload
    def edit(
        self,
        image: Images,
        prompt: list[str] | tuple[str, ...],
        *,
        num_images: int = 1,
        **options: Unpack[EditOptions],
    ) -> list[Image.Image]: ...

    @overload
    def edit(
        self, image: Images, prompt: str, *, num_images: int = 1, **options: Unpack[EditOptions]
    ) -> Image.Image | list[Image.Image]: ...

    def edit(
        self,
        image: Images,
        prompt: str | Sequence[str],
        *,
        num_images: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        size: Size | None = None,
        reference_method: str | None = None,
        reference_size: ReferenceSize = "auto",
        mask: Image.Image | None = None,
        mask_blur: int = 0,
        strength: float = 1.0,
        init_image: Image.Image | None = None,
        paste_back: bool = False,
        negative_prompt: str | Sequence[str] | None = None,
        true_cfg: float = 1.0,
        cfg_until: float = 1.0,
        loras: LoraFiles | None = None,
        callback: StepCallback | None = None,
        progress: bool = False,
    ) -> Image.Image | list[Image.Image]:
        """Edits `image` as `prompt` says.

        Args:
            image: the reference; a list for several references, whose sizes may differ; None to draw from the prompt
                alone. With a list of prompts: one picture for all of them, or a list with an entry for each, which is
                a picture, a list of pictures, or None.
            prompt: the instruction; a list edits a batch. Rows of different sizes run one after the other.
            num_images: pictures for each prompt.
            steps, guidance: None: the bundle's defaults.
            seed: of the first picture, each further one taking the next; or a list with a seed for each picture. A
                picture is the one that its seed gives alone. The noise is that of
                `torch.Generator("cpu").manual_seed(seed)`.
            size: (width, height) of the output, multiples of the bundle's `size_multiple`; None: the preferred size
                nearest to the aspect of `init_image` or the first reference, or the square one without a picture.
            reference_method: "index", "offset" or "stitch", how several references are placed (`references` explains
                them); None: the bundle's.
            reference_size: what references are encoded at: "output", "preferred" (the preferred size nearest to the
                picture's aspect), (width, height), or "auto": with a `size` of the picture's aspect "output", else
                "preferred". A first reference of another aspect than `size`, and pictures that are squashed, are
                warned of.
            mask: of what is repainted: white is, black stays as it is in the picture, and of a mask with transparency
                what is opaque is repainted. It is resized to the output's size and counts as white from mid-grey on.
            mask_blur: radius of a Gaussian blur of the mask, in its own pixels.
            strength: the share of the steps that run, above 0: below 1 they begin from the picture with noise.
            init_image: the picture that is repainted, if it is not the first reference. It is no reference itself.
            paste_back: take the picture's own pixels where the blurred mask is black, and mix where it is grey.
                Without it they are those that the autoencoder makes of it.
            negative_prompt: what the picture should not be; a list with one for each prompt, or one for all.
            true_cfg: the scale of classifier-free guidance with it, above 1. Steps with it are twice the work.
            cfg_until: the share of the steps that have it, from the first on.
            loras: those of this edit; None: those of `load_loras`.
            callback: called after each step with (steps done, steps in all, latents [batch, channels, h, w], fp32).
                Steps count over all batches. False as its result stops the edit; None and other results do not.
            progress: show a bar on stderr.

        Returns:
            A picture, or a list for a list of prompts or `num_images` above 1 (prompt by prompt). What made each, as
            JSON values, is in its `info["kontext"]`; `images.save_picture` writes it into the file.

        Raises:
            KontextError: an argument is wrong; says what would be right.
            ComputationError: a network failed, its output is not finite, or the output filter returned no picture.
            Cancelled: the callback returned False.
        """
        if callback is not None and not callable(callback):
            raise KontextError(f"callback must be a function of (step, steps, latents), not {callback!r}")
        request = build_request(
            self.bundle.sampler,
            image,
            prompt,
            steps=steps,
            guidance=guidance,
            seed=seed,
            size=size,
            num_images=num_images,
            reference_method=reference_method,
            reference_size=reference_size,
            repaint=RepaintOptions(mask, mask_blur, strength, init_image, paste_back),
            cfg=CfgOptions(negative_prompt, true_cfg, cfg_until),
            loras=self.loras if loras is None else self.find_loras(loras),
        )
        self.warn_of_masks(request)
        if self.input_filter is not None:
            for row in request.rows[::num_images]:
                self.input_filter(row.seen, row.prompt)
        pictures = self.make(request, callback, progress)
        if self.output_filter is not None:
            pictures = [check_filtered(self.output_filter(picture)) for picture in pictures]
        return pictures[0] if isinstance(prompt, str) and num_images == 1 else pictures

    def warn_of_masks(self, request: Request) -> None:
        """Warns of masks that leave nothing to keep, or nothing to repaint."""
        masks = {id(row.repaint.mask): row.repaint.mask for row in request.rows if row.repaint is not None}
        notes = [
            note_of(mask, self.bundle.autoencoder.downscale) for mask in masks.values() if mask is not None
        ]
        for note in dict.fromkeys(filter(None, notes)):
            warnings.warn(note, stacklevel=3)

    def load_loras(self, loras: LoraFiles) -> None:
        """Uses these LoRAs in all further edits that name none, in place of earlier ones; none for an empty list.

        Args:
            loras: their files, as `LoraFiles`.

        Raises:
            KontextError: the bundle has no slots for LoRAs or too few, or a file is not ready for it.
        """
        self.loras = self.find_loras(loras)

    def find_loras(self, loras: LoraFiles) -> Loras:
        """As `load_loras`, for one edit; the latest are kept in memory."""
        pairs = [each if isinstance(each, tuple) else (each, 1.0) for each in loras]
        files = [(Path(path), weight) for path, weight in pairs]
        versions = [(*pair, file_version(pair[0])) for pair in files]
        if self.lora_versions != versions:
            self.latest_loras = open_loras(self.bundle, files)
            self.lora_versions = versions
        return self.latest_loras

    def previews(self) -> list[Image.Image]:
        """What the pictures that are being sampled would become by the last step's direction, an eighth of their size
        (`bundle.autoencoder.downscale`), in the rough colours of `preview`. For an edit's callback.

        Raises:
            KontextError: no edit is running, or the bundle was exported before previews were.
        """
        if self.estimate is None:
            raise KontextError("there is a preview only while an edit runs: call previews() in its callback")
        return draw_latents(self.bundle, self.estimate())

    def make(self, request: Request, callback: StepCallback | None, progress: bool) -> list[Image.Image]:
        """The pictures of a request, in the order of its rows."""
        batches = request.batches()
        total = request.run_steps * len(batches)
        texts = self.encode_prompts(request.rows, request.loras)
        references = self.encode_references(request.rows)
        pictures: dict[int, Image.Image] = {}
        with step_bar(total, progress) as advance:
            for number, batch in enumerate(batches):
                before = number * request.run_steps

                def on_step(step: int, latents: Array, before: int = before) -> None:
                    advance()
                    if callback is not None and is_false(callback(before + step, total, latents)):
                        raise Cancelled(
                            f"the callback stopped the edit after {before + step} of {total} steps"
                        )

                rows = [request.rows[index] for index in batch]
                latents = self.sample(rows, request, texts, references, on_step)
                for index, picture in zip(batch, self.decode(latents), strict=True):
                    repaint = request.rows[index].repaint
                    pictures[index] = picture if repaint is None else repaint.pasted(picture)
        self.estimate = None
        digests: dict[int, PictureDigest] = {}
        running = replace(self.running, loras=request.loras.loaded)
        for index, row in enumerate(request.rows):
            made = edit_metadata(request, row, self.bundle, running, digests)
            pictures[index].info = {KEY: made}  # what is pasted back brings the colour profile of its file
        return [pictures[index] for index in range(len(request.rows))]

    def sample(
        self,
        rows: Sequence[Row],
        request: Request,
        texts: dict[str, tuple[Array, Array]],
        references: dict[tuple[int, Size], Array],
        on_step: Callable[[int, Array], object],
    ) -> Array:
        """Final latents [rows, channels, h, w] of rows of one shape.

        Args:
            rows: of the request, of one shape.
            request: for its steps, guidance and LoRAs.
            texts, references: as `encode_prompts` and `encode_references` return them.
            on_step: called with (steps done, latents) after each step.
        """
        latent = self.bundle.autoencoder
        h, w = (side // latent.downscale for side in reversed(rows[0].size))
        start = pack(
            np.concatenate([noise.randn(row.seed, (1, latent.latent_channels, h, w)) for row in rows])
        )
        times = schedule(request.steps, start.shape[1], self.bundle.sampler)[request.skipped :]
        repaints = [row.repaint for row in rows if row.repaint is not None]  # of all rows or of none
        keep = None
        if repaints:
            originals = [references[key(each)] for each in repaints]
            repainting = Repainting(repaints, originals, start, latent.downscale)
            start, keep = repainting.noised(times[0]), repainting.keep

        reference = start[:, :0]
        if rows[0].references:
            tokens = [[references[key(each)] for each in row.references] for row in rows]
            reference = np.concatenate([np.concatenate(each, axis=1) for each in tokens])
        prompts = [row.prompt for row in rows]
        guided = 0
        if request.cfg is not None:  # the first steps run all rows a second time, with their negative prompts
            guided = request.cfg.guided(request.run_steps)
            prompts += [row.negative or "" for row in rows]
            reference = np.concatenate([reference, reference])
        text = np.concatenate([texts[prompt][1] for prompt in prompts])
        modulations = self.modulations(timesteps(times[:-1]), request.guidance, prompts, texts, request.loras)
        grids, origins = rows[0].token_grids(2 * latent.downscale)
        transformer = self.bundle.transformer
        ids = positions(text.shape[1], grids, origins)
        cos, sin = rope_tables(ids, transformer.axes_dim, transformer.theta)
        # Rows of each step's batch: all of them as long as it is guided, then the first half.
        counts = [2 * len(rows) if step < guided else len(rows) for step in range(request.run_steps)]
        held = {
            count: self.backend.hold(
                {"reference": reference[:count], "text": text[:count], "rope_cos": cos, "rope_sin": sin}
            )
            for count in dict.fromkeys(counts)
        }
        held_loras = self.backend.hold(request.loras.inputs.get("transformer", {}))
        held_modulations = [
            self.backend.hold({name: each[step][:count] for name, each in modulations.items()})
            for step, count in enumerate(counts)
        ]

        def velocity(step: int, x: Array) -> Array:
            target = x if step >= guided else np.concatenate([x, x])
            inputs = {"target": target, **held[counts[step]], **held_loras, **held_modulations[step]}
            outputs = self.backend.run("transformer", inputs, SamplerStep(step, request.run_steps))
            result = take(outputs, "transformer", "velocity", target.shape)
            result = result if request.cfg is None or step >= guided else request.cfg.combine(result)
            self.estimate = lambda: unpack(destination(x, times[step], result, keep), h, w)
            return result

        target = euler(start, times, velocity, lambda step, x: on_step(step, unpack(x, h, w)), keep)
        if self.low_memory:
            self.backend.release("transformer")
        check_finite("transformer", target)
        return unpack(target, h, w)

    def encode_prompts(self, rows: Sequence[Row], loras: Loras = NO_LORAS) -> dict[str, tuple[Array, Array]]:
        """Pooled vector [1, pooled_dim] and sequence [1, text_tokens, text_dim] of each prompt, negative ones too.

        Prompts are encoded one by one: in a batch, the last bits of one may depend on the others.
        """
        sizes = self.bundle.transformer
        given = [prompt for row in rows for prompt in (row.prompt, row.negative) if prompt is not None]
        ids = {prompt: (self.clip([prompt]), self.t5([prompt])) for prompt in dict.fromkeys(given)}
        salt = loras.salt("text_encoder")
        keys = {prompt: prompt_key(*each, salt=salt) for prompt, each in ids.items()}
        encoded = {each: self.embeddings.find(each) for each in dict.fromkeys(keys.values())}
        missing = {keys[prompt]: each for prompt, each in ids.items() if encoded[keys[prompt]] is None}
        clip = self.stage("text_encoder", [{"input_ids": each} for each, _ in missing.values()], loras)
        t5 = self.stage("text_encoder_2", [{"input_ids": each} for _, each in missing.values()], loras)
        for each, pooled, text in zip(missing, clip, t5, strict=True):
            encoded[each] = made = (
                take(pooled, "text_encoder", "pooled", (1, sizes.pooled_dim)),
                take(text, "text_encoder_2", "text", (1, None, sizes.text_dim)),
            )
            self.embeddings.keep(each, made)
        return {prompt: encoded[each] for prompt, each in keys.items()}  # type: ignore[misc]  # none is missing

    def encode_references(self, rows: Sequence[Row]) -> dict[tuple[int, Size], Array]:
        """The tokens [1, tokens, channels] of each different picture that is encoded, one by one."""
        tokens: dict[tuple[int, Size], Array] = {}
        for reference in (each for row in rows for each in row.encoded):
            if key(reference) not in tokens:
                tokens[key(reference)] = self.encode_reference(reference)
        if self.low_memory:
            self.backend.release("vae_encoder")
        return tokens

    def encode_reference(self, reference: Reference | Repaint) -> Array:
        """The tokens [1, tokens, channels] of a reference, or of the picture that is repainted."""
        kept = None
        if self.embeddings.capacity:  # else nobody needs the digest of its pixels
            kept = reference_key(reference.picture, reference.size)
            if found := self.embeddings.find(kept):
                return found[0]
        outputs = self.backend.run("vae_encoder", {"image": to_array(reference.picture, reference.size)})
        sizes = self.bundle.autoencoder
        h, w = (side // sizes.downscale for side in reversed(reference.size))
        latents = take(outputs, "vae_encoder", "latents", (1, sizes.latent_channels, h, w))
        check_finite("vae_encoder", latents)
        tokens = pack(latents)
        if kept is not None:
            self.embeddings.keep(kept, (tokens,))
        return tokens

    def modulations(
        self,
        times: Array,
        guidance: float,
        rows: Sequence[str],
        texts: dict[str, tuple[Array, Array]],
        loras: Loras,
    ) -> dict[str, Array]:
        """The modulations of all steps, computed in one batch, for rows with these prompts: name → [steps, rows, …]."""
        prompts = list(dict.fromkeys(rows))
        steps, count = len(times), len(prompts)
        pooled = np.concatenate([texts[prompt][0] for prompt in prompts])
        inputs = {
            "timestep": np.repeat(times, count),
            "guidance": np.full(steps * count, guidance, np.float32),
            "pooled": np.tile(pooled, (steps, 1)),
        }
        (outputs,) = self.stage("modulation", [inputs], loras)
        for name in OUTPUTS["modulation"]:
            take(outputs, "modulation", name, (steps * count, ...))
        chosen = [prompts.index(prompt) for prompt in rows]
        each_step = {name: value.reshape(steps, count, *value.shape[1:]) for name, value in outputs.items()}
        return {name: value[:, chosen] for name, value in each_step.items()}

    def decode(self, latents: Array) -> list[Image.Image]:
        """Pictures of latents [rows, channels, h, w], decoded one by one: a batch takes more memory, not less time."""
        pictures: list[Image.Image] = []
        for row in range(len(latents)):
            outputs = self.backend.run("vae_decoder", {"latents": latents[row : row + 1]})
            h, w = (side * self.bundle.autoencoder.downscale for side in latents.shape[2:])
            image = take(outputs, "vae_decoder", "image", (1, 3, h, w))
            check_finite("vae_decoder", image)
            pictures += to_pictures(image)
        if self.low_memory:
            self.backend.release("vae_decoder")
        return pictures

    def stage(self, graph: str, inputs: Sequence[dict[str, Any]], loras: Loras) -> list[dict[str, Any]]:
        """Runs a graph once for each of `inputs`; the edit does not need it again."""
        more = loras.inputs.get(graph, {})
        outputs = [self.backend.run(graph, {**each, **more}) for each in inputs]
        if self.low_memory:
            self.backend.release(graph)
        for values in (values for each in outputs for values in each.values()):
            check_finite(graph, values)
        return outputs


def is_false(answer: object) -> bool:
    """Whether a callback returned False, Python's or numpy's; 0 and None go on."""
    return answer is False or (isinstance(answer, np.bool_) and not answer)


def check_filtered(picture: object) -> Image.Image:
    """What an output filter returned. Raises ComputationError unless it is a picture."""
    if not isinstance(picture, Image.Image):
        raise ComputationError(
            f"output_filter returned {type(picture).__name__}: it must return the picture, or raise KontextError"
        )
    return picture


def key(reference: Reference | Repaint) -> tuple[int, Size]:
    """Identifies what is encoded during an edit."""
    return id(reference.picture), reference.size


@contextmanager
def step_bar(steps: int, show: bool) -> Iterator[Callable[[], object]]:
    if not show:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=steps, unit="step") as bar:
        yield bar.update
