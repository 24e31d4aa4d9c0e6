"""Requests to a server as edits: arrays checked and turned into rows, rows grouped into batches, batches run.

Nothing here knows the server; `stream` hands in arrays and takes what comes out.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import KontextError
from ..images import read_picture
from ..pipeline import Pipeline
from ..request import Request, build_request
from . import contract
from .contract import Limits

Array = NDArray[Any]

FORMATS = ("PNG", "JPEG", "WEBP")
"""What pictures may come in: fewer decoders, fewer ways in."""

PNG_LEVEL = 1
"""zlib's level: at 1024x1024 the default takes 0.5 s more for 4 % fewer bytes."""

NUMPY_TYPES = {"BYTES": np.dtype(object), "INT32": np.dtype(np.int32), "FP32": np.dtype(np.float32)} | {
    "UINT64": np.dtype(np.uint64)
}


class Refused(KontextError):
    """A content filter does not allow it."""


class Listener(Protocol):
    """Whoever waits for an edit."""

    def cancelled(self) -> bool:
        """Whether nobody waits any more."""

    def progress(self, step: int, total: int) -> None: ...

    def finish(self, picture: Image.Image) -> None: ...

    def fail(self, error: BaseException | None) -> None:
        """The edit has failed; None: it was cancelled."""


@dataclass
class Job:
    """One edit, of one request."""

    request: Request
    listener: Listener
    warnings: Sequence[str] = ()
    open: bool = field(default=True)
    """Until the listener has been told the end."""

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind can be sampled together."""
        return (self.request.steps, self.request.guidance, self.request.rows[0].shape)

    def close_if_cancelled(self) -> None:
        if self.open and self.listener.cancelled():
            self.open = False
            self.listener.fail(None)


def read_request(pipe: Pipeline, limits: Limits, arrays: Mapping[str, Array]) -> tuple[Request, list[str]]:
    """The request that a server's input arrays ask for, and what the user is to be warned of.

    Args:
        arrays: name → array of `contract.INPUTS`, with the batch dimension; bytes as objects.

    Raises:
        KontextError: which input is wrong, and what would be right.
        Refused: the pipeline's input filter does not allow it.
    """
    for tensor in contract.INPUTS:
        check_array(tensor, arrays.get(tensor.name))
    prompt = read_prompt(arrays[contract.PROMPT.name].flat[0], limits)
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
    )
    if pipe.input_filter is not None:
        with as_refusal():
            pipe.input_filter([reference.picture for reference in request.rows[0].references], prompt)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.clip([prompt])
        pipe.t5([prompt])
    return request, [str(warning.message) for warning in caught]


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
            f"{tensor.name} has a batch of {array.shape[0]}: send one request for each picture, "
            "the server runs together what it can"
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


def read_pictures(array: Array | None, limits: Limits) -> list[Image.Image]:
    """The decoded references; the sizes in the files' headers are added up before anything is decoded."""
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
    """A picture's file, from itself or from base64 of it."""
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise KontextError(f"IMAGES[{index}] is neither a PNG, JPEG or WebP file nor base64 of one") from None


def group_jobs(jobs: Sequence[Job], largest: int) -> Iterator[list[Job]]:
    """Jobs that can be sampled together, at most `largest` of them, in the order of their first ones."""
    kinds: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.kind, []).append(job)
    for same in kinds.values():
        for start in range(0, len(same), largest):
            yield same[start : start + largest]


class AllCancelled(Exception):
    """Stops the sampler: nobody waits for any picture of the batch."""


def run_jobs(pipe: Pipeline, jobs: Sequence[Job], on_rows: Callable[[int], object]) -> None:
    """Makes the pictures of jobs of one kind in one batch, and tells every listener how it ended.

    A cancelled job's listener is told at the next step, and the batch stops when it was the last. If a batch fails,
    its jobs are run one by one, so that none suffers from another's error.

    Args:
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
            warnings.simplefilter("ignore")  # each job has its own
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
        except Exception as error:
            end(job, error)
        else:
            end(job, picture)


def end(job: Job, result: Image.Image | Exception) -> None:
    """Tells the listener of an open job how it ended."""
    if job.open:
        job.open = False
        if isinstance(result, Exception):
            job.listener.fail(result)
        else:
            job.listener.finish(result)


class as_refusal:
    """Turns a KontextError of a content filter into Refused."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KontextError):
            raise Refused(str(error)) from None


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()
