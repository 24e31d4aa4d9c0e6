"""A server's requests as edits: arrays are checked and become rows, and rows of one kind run as a batch.

This module does not depend on the server: `stream_model` passes in arrays and listeners.
"""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import KontextError
from ..images import png_file
from ..inpainting import RepaintOptions
from ..lora import Loras
from ..pipeline import Pipeline, check_filtered
from ..request import Request, build_request
from ..true_cfg import CfgOptions
from . import contract
from .contract import Limits
from .loras import requested_loras
from .pictures import Pictures, read_pictures, read_word

Array = NDArray[Any]

PNG_LEVEL = 1
"""zlib's level; at 1024x1024 the default takes 0.5 s longer for 4 % fewer bytes."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BYTES": np.dtype(object),
    "BOOL": np.dtype(np.bool_),
    "INT32": np.dtype(np.int32),
    "UINT64": np.dtype(np.uint64),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


class Refused(KontextError):
    """A content filter refused the request."""


class Listener(Protocol):
    """The caller of an edit. Either `finish` or `fail` is called, once and last."""

    def cancelled(self) -> bool:
        """Whether the caller has cancelled or disconnected."""

    def progress(self, step: int, total: int) -> None:
        """`step` of `total` steps are done."""

    def finish(self, picture: Image.Image) -> None:
        """The edit is done."""

    def fail(self, error: BaseException | None) -> None:
        """The edit has failed; None: it was cancelled."""


@dataclass
class Job:
    """One edit: a request of one row."""

    request: Request
    listener: Listener
    warnings: Sequence[str] = ()
    open: bool = field(default=True)
    """Until `finish` or `fail` of the listener was called."""
    arrived: float = field(default_factory=time.monotonic)
    long: bool = False
    """Whether it is more work than an edit with the bundle's defaults."""
    on_preview: Callable[[Image.Image], object] | None = None
    """Called after each step, before the listener's `progress`, with what the picture would become
    (`Pipeline.previews`)."""
    leave: Callable[[], object] = lambda: None
    """Called once, when it no longer waits for its batch to begin."""

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind can be sampled in one batch."""
        return (replace(self.request, rows=()), self.request.rows[0].shape)

    @property
    def work(self) -> float:
        """Steps, those with true CFG twice, times pixels of the output and of the references as they are encoded."""
        row = self.request.rows[0]
        return self.request.passes * sum(map(math.prod, (row.size, *(each.size for each in row.references))))

    @property
    def width(self) -> int:
        """Rows of a batch that it takes: two with true CFG."""
        return 1 if self.request.cfg is None else 2

    def close_if_cancelled(self) -> None:
        if self.open and self.listener.cancelled():
            self.open = False
            self.listener.fail(None)


def read_request(
    pipe: Pipeline,
    limits: Limits,
    arrays: Mapping[str, Array],
    decoded: Pictures | None = None,
    lora_folder: Path | None = None,
) -> tuple[Request, list[str]]:
    """The edit that a request's arrays describe, and warnings for the caller.

    Args:
        pipe: whose bundle, tokenizers and input filter are used.
        limits: of one request.
        arrays: name → array of `contract.INPUTS`, with the batch dimension; bytes as objects.
        decoded: its pictures, as `pictures.read_pictures` returns them; None: it is called here.
        lora_folder: where the LoRAs are that it may name; None: it may name none.

    Raises:
        KontextError: an input is wrong; says which, and what would be right.
        Refused: the pipeline's input filter refused it.
    """
    check_arrays(arrays)
    decoded = read_pictures(arrays, limits) if decoded is None else decoded
    prompt = read_prompt(arrays, contract.PROMPT, limits) or ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        request = build(pipe, limits, arrays, prompt, decoded, lora_folder)
        pipe.warn_of_masks(request)
        for text in (prompt, request.rows[0].negative or ""):
            pipe.clip([text])
            pipe.t5([text])
    if pipe.input_filter is not None:
        with as_refusal():
            pipe.input_filter(request.rows[0].seen, prompt)
    return request, decoded.warnings + [str(warning.message) for warning in caught]


def build(
    pipe: Pipeline,
    limits: Limits,
    arrays: Mapping[str, Array],
    prompt: str,
    pictures: Pictures,
    lora_folder: Path | None,
) -> Request:
    """The request of arrays whose types and shapes are checked."""
    numbers = [each.name for each in contract.INPUTS if each.datatype != "BYTES"]
    values = {name: arrays[name].ravel().tolist() for name in numbers if name in arrays}
    steps = values.get("STEPS", [None])[0]
    if steps is not None and steps > limits.max_steps:
        raise KontextError(f"STEPS may be at most {limits.max_steps} here, not {steps}")
    size = values.get("SIZE")
    request = build_request(
        pipe.bundle.sampler,
        [each.picture for each in pictures.references],
        prompt,
        steps=steps,
        guidance=values.get("GUIDANCE", [None])[0],
        seed=values.get("SEED", [0])[0],
        size=None if size is None else (size[0], size[1]),
        reference_method=read_word(arrays, contract.REFERENCE_METHOD),
        reference_size=read_word(arrays, contract.REFERENCE_SIZE) or "auto",
        repaint=read_repaint(values, pictures),
        cfg=CfgOptions(
            read_prompt(arrays, contract.NEGATIVE_PROMPT, limits),
            values.get("TRUE_CFG", [1.0])[0],
            values.get("CFG_UNTIL", [1.0])[0],
        ),
        loras=read_loras(pipe, arrays, lora_folder),
    )
    all_encoded = sum(math.prod(each.size) for each in request.rows[0].encoded)
    if all_encoded > limits.max_megapixels * 1_000_000:
        raise KontextError(
            f"the pictures would be encoded at {all_encoded / 1e6:.3g} million pixels together; at most "
            f"{limits.max_megapixels} million are taken here"
        )
    output = math.prod(request.rows[0].size)
    if output > limits.max_output_megapixels * 1_000_000:
        raise KontextError(
            f"SIZE {'x'.join(map(str, request.rows[0].size))} is {output / 1e6:.3g} million pixels; at most "
            f"{limits.max_output_megapixels} million are made here"
        )
    encoded = sum(math.prod(reference.size) for reference in request.rows[0].references)
    work = request.passes * (output + encoded) / 1e6
    if work > limits.max_megapixel_steps:
        twice = request.passes - request.run_steps
        raise KontextError(
            f"{request.run_steps} steps{f', {twice} of them twice,' if twice else ''} of "
            f"{(output + encoded) / 1e6:.3g} million pixels, references included, are {work:.0f} million; at most "
            f"{limits.max_megapixel_steps} million are taken here: ask for fewer steps, a smaller SIZE or fewer "
            "references"
        )
    return request


def read_loras(pipe: Pipeline, arrays: Mapping[str, Array], folder: Path | None) -> Loras:
    """The LoRAs that a request names; those of the pipeline if it names none."""
    if contract.LORAS.name not in arrays:
        return pipe.loras
    named = requested_loras(folder, arrays[contract.LORAS.name].ravel().tolist())
    try:
        return pipe.find_loras(named)
    except KontextError as error:  # callers know the names of files, and not where they are
        raise KontextError(str(error).replace(f"{folder}/", "")) from None


def read_repaint(values: Mapping[str, list[Any]], pictures: Pictures) -> RepaintOptions:
    """What a request repaints, by its numbers and its pictures."""
    mask, init_image = pictures.mask, pictures.init_image
    return RepaintOptions(
        mask=None if mask is None else mask.picture,
        mask_blur=values.get("MASK_BLUR", [0])[0],
        strength=values.get("STRENGTH", [1.0])[0],
        init_image=None if init_image is None else init_image.picture,
        paste_back=values.get("PASTE_BACK", [False])[0],
    )


def check_arrays(arrays: Mapping[str, Array]) -> None:
    """Raises KontextError unless the arrays are those of one edit."""
    for tensor in contract.INPUTS:
        check_array(tensor, arrays.get(tensor.name))


def check_array(tensor: contract.Tensor, array: Array | None) -> None:
    """Raises KontextError unless `array` is one edit's `tensor`."""
    if array is None:
        if tensor.optional:
            return
        raise KontextError(f"{tensor.name} is missing: {tensor.meaning}")
    shape = [1, *tensor.shape]
    if array.dtype != NUMPY_TYPES[tensor.datatype]:
        raise KontextError(f"{tensor.name} must be {tensor.datatype}, not {array.dtype}")
    if array.ndim > 0 and array.ndim == len(shape) and array.shape[0] != 1:
        raise KontextError(
            f"{tensor.name} has a batch of {array.shape[0]}: send one request for each picture; "
            "the server batches requests"
        )
    if array.ndim != len(shape) or any(
        want not in (-1, side) for want, side in zip(shape, array.shape, strict=True)
    ):
        raise KontextError(f"{tensor.name} must have the shape {shape}, not {list(array.shape)}")


def read_prompt(arrays: Mapping[str, Array], tensor: contract.Tensor, limits: Limits) -> str | None:
    """The text of PROMPT or NEGATIVE_PROMPT; None if it is not given."""
    if tensor.name not in arrays:
        return None
    value = arrays[tensor.name].flat[0]
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    if len(data) > limits.max_prompt_bytes:
        raise KontextError(
            f"{tensor.name} has {len(data)} bytes; at most {limits.max_prompt_bytes} are taken here"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise KontextError(f"{tensor.name} is not UTF-8") from None


class AllCancelled(Exception):
    """Stops the sampler: every job of the batch is cancelled."""


class TookTooLong(KontextError):
    """An edit was stopped by the limit of the clock."""


def run_jobs(
    pipe: Pipeline,
    jobs: Sequence[Job],
    on_rows: Callable[[int], object],
    after_step: Callable[[], object] = lambda: None,
    max_seconds: float = math.inf,
) -> None:
    """Runs jobs of one kind as one batch and calls every listener's `finish` or `fail`.

    A cancelled job fails at the next step, and the batch stops with its last job. If a batch fails, its jobs run one
    by one, so that one job's error does not fail the others.

    Args:
        pipe: runs the edits.
        jobs: of one kind.
        on_rows: called with the number of rows after each step.
        after_step: called after each step; it may take its time, in which others run.
        max_seconds: by the clock, after which the jobs fail.
    """
    began = time.monotonic()
    for job in jobs:
        job.close_if_cancelled()
    jobs = [job for job in jobs if job.open]
    if not jobs:
        return
    first = jobs[0].request
    request = replace(first, rows=tuple(job.request.rows[0] for job in jobs))

    def on_step(step: int, total: int, _: object) -> None:
        on_rows(len(jobs))
        for job in jobs:
            job.close_if_cancelled()
        wanted = any(job.open and job.on_preview is not None for job in jobs)
        previews = pipe.previews() if wanted else [None] * len(jobs)
        for job, preview in zip(jobs, previews, strict=True):
            if job.open:
                if job.on_preview is not None and preview is not None:
                    job.on_preview(preview)
                job.listener.progress(step, total)
        if step < total and time.monotonic() - began > max_seconds:
            for job in jobs:
                end(
                    job,
                    TookTooLong(
                        f"the edit took more than {max_seconds:g} s: {step} of {total} steps were done"
                    ),
                )
        if not any(job.open for job in jobs):
            raise AllCancelled
        after_step()

    try:
        pictures = pipe.make(request, on_step, progress=False)
    except AllCancelled:
        return
    except Exception as error:
        if len(jobs) == 1:
            end(jobs[0], error)
        else:
            for job in jobs:
                run_jobs(pipe, [job], on_rows, after_step, max_seconds)
        return
    for job, picture in zip(jobs, pictures, strict=True):
        try:
            if pipe.output_filter is not None:
                with as_refusal():
                    picture = pipe.output_filter(picture)
                check_filtered(picture)
        except Exception as error:
            end(job, error)
        else:
            end(job, picture)


def end(job: Job, result: Image.Image | Exception) -> None:
    """Calls the listener's `finish` or `fail`, unless the job is already closed."""
    if job.open:
        job.open = False
        if isinstance(result, Exception):
            job.listener.fail(result)
        else:
            job.listener.finish(result)


class as_refusal:
    """A context that turns a content filter's KontextError into Refused."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KontextError):
            raise Refused(str(error)) from None


def jpeg(picture: Image.Image) -> bytes:
    """A preview's JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def png(picture: Image.Image, *, metadata: bool = True) -> bytes:
    """As `images.png_file`."""
    return png_file(picture, metadata=metadata, level=PNG_LEVEL)
