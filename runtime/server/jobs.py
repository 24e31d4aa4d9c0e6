"""A server's requests as edits: arrays are checked and become rows, rows are grouped into batches, batches run.

This module does not depend on the server: `stream_model` passes in arrays and listeners.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import KontextError
from ..images import read_picture
from ..pipeline import Pipeline, check_filtered
from ..request import Request, build_request
from . import contract
from .contract import Limits

Array = NDArray[Any]

FORMATS = ("PNG", "JPEG", "WEBP")
"""Accepted formats of pictures; fewer decoders are a smaller attack surface."""

PNG_LEVEL = 1
"""zlib's level; at 1024x1024 the default takes 0.5 s longer for 4 % fewer bytes."""

URL_SAFE = bytes.maketrans(b"-_", b"+/")
"""From base64's alphabet for URLs to its usual one (RFC 4648)."""

NUMPY_TYPES = {"BYTES": np.dtype(object), "INT32": np.dtype(np.int32), "FP32": np.dtype(np.float32)} | {
    "UINT64": np.dtype(np.uint64)
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

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind can be sampled in one batch."""
        return (self.request.steps, self.request.guidance, self.request.rows[0].shape)

    def close_if_cancelled(self) -> None:
        if self.open and self.listener.cancelled():
            self.open = False
            self.listener.fail(None)


def read_request(pipe: Pipeline, limits: Limits, arrays: Mapping[str, Array]) -> tuple[Request, list[str]]:
    """The edit that a request's arrays describe, and warnings for the caller.

    Args:
        pipe: whose bundle, tokenizers and input filter are used.
        limits: of one request.
        arrays: name → array of `contract.INPUTS`, with the batch dimension; bytes as objects.

    Raises:
        KontextError: an input is wrong; says which, and what would be right.
        Refused: the pipeline's input filter refused it.
    """
    for tensor in contract.INPUTS:
        check_array(tensor, arrays.get(tensor.name))
    prompt = read_prompt(arrays[contract.PROMPT.name].flat[0], limits)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        request = build(pipe, limits, arrays, prompt)
        pipe.clip([prompt])
        pipe.t5([prompt])
    if pipe.input_filter is not None:
        with as_refusal():
            pipe.input_filter(request.rows[0].pictures, prompt)
    return request, [str(warning.message) for warning in caught]


def build(pipe: Pipeline, limits: Limits, arrays: Mapping[str, Array], prompt: str) -> Request:
    """The request of arrays whose types and shapes are checked."""
    pictures = read_pictures(arrays.get(contract.IMAGES.name), limits)
    values = {
        name: arrays[name].ravel().tolist()
        for name in ("STEPS", "GUIDANCE", "SEED", "SIZE")
        if name in arrays
    }
    steps = values.get("STEPS", [None])[0]
    if steps is not None and steps > limits.max_steps:
        raise KontextError(f"STEPS may be at most {limits.max_steps} here, not {steps}")
    size = values.get("SIZE")
    request = build_request(
        pipe.bundle.sampler,
        pictures,
        prompt,
        steps=steps,
        guidance=values.get("GUIDANCE", [None])[0],
        seed=values.get("SEED", [0])[0],
        size=None if size is None else (size[0], size[1]),
        reference_method=read_word(arrays, contract.REFERENCE_METHOD),
        reference_size=read_word(arrays, contract.REFERENCE_SIZE) or "auto",
    )
    encoded = sum(math.prod(reference.size) for reference in request.rows[0].references)
    if encoded > limits.max_megapixels * 1_000_000:
        raise KontextError(
            f"the references would be encoded at {encoded / 1e6:.3g} million pixels together; at most "
            f"{limits.max_megapixels} million are taken here"
        )
    return request


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


def read_prompt(value: object, limits: Limits) -> str:
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    if len(data) > limits.max_prompt_bytes:
        raise KontextError(f"PROMPT has {len(data)} bytes; at most {limits.max_prompt_bytes} are taken here")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise KontextError("PROMPT is not UTF-8") from None


def read_word(arrays: Mapping[str, Array], tensor: contract.Tensor) -> str | None:
    """A word among the inputs; None if it is not given or empty."""
    if tensor.name not in arrays:
        return None
    value = arrays[tensor.name].flat[0]
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)) or None


def read_pictures(array: Array | None, limits: Limits) -> list[Image.Image]:
    """The decoded references. Sizes are checked from the files' headers, before each is decoded."""
    files = (
        [] if array is None else [picture_bytes(value, i) for i, value in enumerate(array.ravel().tolist())]
    )
    if len(files) > limits.max_references:
        raise KontextError(
            f"IMAGES has {len(files)} pictures; at most {limits.max_references} are taken here"
        )
    pictures, left = [], limits.max_megapixels * 1_000_000
    for i, data in enumerate(files):
        picture = read_picture(io.BytesIO(data), f"IMAGES[{i}]", formats=FORMATS, max_pixels=left)
        left -= picture.width * picture.height
        pictures.append(picture)
    return pictures


def picture_bytes(value: object, index: int) -> bytes:
    """The bytes of a picture's file. It may be base64, wrapped or not, of either alphabet, and a data: URL."""
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    if is_file(data):
        return data
    where = f"IMAGES[{index}]"
    if data[:5].lower() == b"data:":
        head, comma, data = data.partition(b",")
        if not comma or not head.lower().endswith(b";base64"):
            raise KontextError(f"{where} is a data: URL without base64: send data:image/png;base64,…")
    text = b"".join(data.split()).translate(URL_SAFE).rstrip(b"=")
    try:
        file = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        file = b""
    if not is_file(file):
        raise KontextError(f"{where} is neither a PNG, JPEG or WebP file nor base64 of one")
    return file


def is_file(data: bytes) -> bool:
    """Whether these bytes start as a PNG, JPEG or WebP file does."""
    return data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF"))


def answers_in_base64(arrays: Mapping[str, Array], asked: object) -> bool:
    """Whether the picture is sent as base64: what the request's parameter says, else unless a reference came as the
    bytes of a file. JSON cannot hold those, so its clients always get what they can read."""
    if asked is not None:
        return asked is True
    given = arrays.get(contract.IMAGES.name)
    return given is None or not any(
        isinstance(each, bytes) and is_file(each) for each in given.ravel().tolist()
    )


def group_jobs(jobs: Sequence[Job], largest: int) -> Iterator[list[Job]]:
    """Batches of at most `largest` jobs of one kind, ordered by their first job."""
    kinds: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.kind, []).append(job)
    for same in kinds.values():
        for start in range(0, len(same), largest):
            yield same[start : start + largest]


class AllCancelled(Exception):
    """Stops the sampler: every job of the batch is cancelled."""


def run_jobs(pipe: Pipeline, jobs: Sequence[Job], on_rows: Callable[[int], object]) -> None:
    """Runs jobs of one kind as one batch and calls every listener's `finish` or `fail`.

    A cancelled job fails at the next step, and the batch stops with its last job. If a batch fails, its jobs run one
    by one, so that one job's error does not fail the others.

    Args:
        pipe: runs the edits.
        jobs: of one kind.
        on_rows: called with the number of rows after each step.
    """
    for job in jobs:
        job.close_if_cancelled()
    jobs = [job for job in jobs if job.open]
    if not jobs:
        return
    first = jobs[0].request
    request = Request(tuple(job.request.rows[0] for job in jobs), first.steps, first.guidance)

    def on_step(step: int, total: int, _: object) -> None:
        on_rows(len(jobs))
        for job in jobs:
            job.close_if_cancelled()
            if job.open:
                job.listener.progress(step, total)
        if not any(job.open for job in jobs):
            raise AllCancelled

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `read_request` has collected each job's
            pictures = pipe.make(request, on_step, progress=False)
    except AllCancelled:
        return
    except Exception as error:
        if len(jobs) == 1:
            end(jobs[0], error)
        else:
            for job in jobs:
                run_jobs(pipe, [job], on_rows)
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


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()
