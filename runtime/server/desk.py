"""Takes a server's requests in: their pictures are decoded, they wait, and take turns with others on one pipeline.

This module does not depend on the server: `stream_model` and `kontext-serve` pass in arrays and listeners. Threads may
call a desk; the pipeline is used by one thread at a time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ...errors import Cancelled
from ..bundle import Bundle
from ..noise import check_seed
from ..pipeline import Pipeline
from ..preview import check_previews
from . import jobs, pictures
from .contract import Limits
from .decoding import Decoders
from .measures import Counters
from .outcomes import Full
from .turns import Turns

PLACES = 4
"""Batches that take turns. Each keeps its latents, texts, references and modulations in memory."""

DECODED_AHEAD = 16
"""Requests of a kind (long or not) whose pictures are decoded before they begin; the others wait as they came."""

FULL_BATCH_TOKENS = 4096
"""Tokens of a batch that fill a GPU: one picture of 1024x1024."""

LARGEST_BATCH = 8
"""Most pictures in a batch by default."""


class Listener(jobs.Listener, Protocol):
    """The caller of an edit, who also gets warnings."""

    started: float
    """`time.monotonic()` of the request's arrival."""
    warnings: list[str]
    """Set before the edit begins."""
    on_preview: Callable[[Image.Image], object] | None
    """As `jobs.Job` has it; None: without previews."""

    def begin(self) -> None:
        """The edit no longer waits: it begins, or has failed."""


class Desk:
    """Requests in, calls of their listeners out.

    Args:
        pipe: runs the edits.
        limits: of one request, and of how many wait.
        largest: most pictures in a batch.
        counters: the metrics.
        lora_folder: where the LoRAs are that requests may name; None: they may name none.

    Raises:
        ComputationError: no process can be started to decode pictures.
    """

    def __init__(
        self,
        pipe: Pipeline,
        limits: Limits,
        largest: int,
        counters: Counters,
        lora_folder: Path | None = None,
    ) -> None:
        self.pipe = pipe
        self.limits = limits
        self.counters = counters
        self.lora_folder = lora_folder
        self.readers = [ThreadPoolExecutor(DECODED_AHEAD) for _ in range(2)]
        """For requests that are not long, and for those that are: neither kind waits for the other's."""
        self.decoders = Decoders(seconds=limits.max_decode_seconds)
        sampler = pipe.bundle.sampler
        pixels = max(map(math.prod, sampler.preferred_sizes))
        self.default_steps, self.default_pixels = sampler.steps, pixels
        places = 1 if pipe.low_memory else PLACES  # else each turn would load the networks again
        self.turns = Turns(self.run, largest, places, 2.0 * sampler.steps * pixels)

    def submit(self, arrays: Mapping[str, Any], listeners: Sequence[Listener]) -> None:
        """Takes a request in.

        Args:
            arrays: name → array of `contract.INPUTS`, of types and shapes that `jobs.check_arrays` lets pass.
            listeners: one for each picture that the request asks for; seeds count up from the request's.

        Raises:
            Full: too many wait already.
        """
        if self.turns.queue_length() >= self.limits.max_queue:
            raise Full(f"the maximum queue size of {self.limits.max_queue} is reached: try again later")
        self.turns.expect()
        for _ in listeners:
            self.counters.queued(1)
        long = self.is_long(arrays)
        self.readers[long].submit(self.read, arrays, listeners, long)

    def is_long(self, arrays: Mapping[str, Any]) -> bool:
        """Whether a request is more work than an edit of one reference with the bundle's defaults, as far as one can
        see before its pictures are decoded."""
        steps = int(arrays["STEPS"].flat[0]) if "STEPS" in arrays else self.default_steps
        pixels = math.prod(arrays["SIZE"].ravel().tolist()) if "SIZE" in arrays else self.default_pixels
        references = arrays["IMAGES"].size if "IMAGES" in arrays else 0
        if "NEGATIVE_PROMPT" in arrays and "TRUE_CFG" in arrays:
            steps *= 2
        return steps * (pixels + references * self.default_pixels) > self.turns.default_work

    def read(self, arrays: Mapping[str, Any], listeners: Sequence[Listener], long: bool) -> None:
        """Decodes a request's pictures, and returns when its batch begins: so many are decoded ahead."""
        begun = threading.Event()
        decoded: pictures.Pictures | Exception
        try:
            if all(each.cancelled() for each in listeners):
                raise Cancelled("the caller has left")
            decoded = pictures.read_pictures(arrays, self.limits, self.decoders.decode)
        except Exception as error:
            decoded = error
        self.turns.between_steps(lambda: self.add(arrays, listeners, decoded, long, begun))
        begun.wait()

    def add(
        self,
        arrays: Mapping[str, Any],
        listeners: Sequence[Listener],
        decoded: pictures.Pictures | Exception,
        long: bool,
        begun: threading.Event,
    ) -> None:
        """Lets a request wait for its turn, or fail. While this runs no batch does."""

        def leave(listener: Listener) -> None:
            begun.set()
            listener.begin()
            self.counters.queued(-1, time.monotonic() - listener.started)

        try:
            if isinstance(decoded, Exception):
                raise decoded
            request, warnings = jobs.read_request(self.pipe, self.limits, arrays, decoded, self.lora_folder)
            (row,) = request.rows
            check_seed(row.seed + len(listeners) - 1)
            if any(each.on_preview is not None for each in listeners):
                check_previews(self.pipe.bundle)
        except Exception as error:
            for each in listeners:
                each.fail(None if isinstance(error, Cancelled) else error)
                leave(each)
            return
        for number, each in enumerate(listeners):
            each.warnings = warnings
            one = replace(request, rows=(replace(row, seed=row.seed + number),))

            def done(each: Listener = each) -> None:
                leave(each)

            self.turns.add(
                jobs.Job(one, each, arrived=each.started, long=long, on_preview=each.on_preview, leave=done)
            )

    def run(self, batch: list[jobs.Job], after_step: Callable[[], None]) -> None:
        self.counters.batch(len(batch))
        try:
            jobs.run_jobs(self.pipe, batch, self.counters.steps, after_step, self.limits.max_seconds)
        finally:
            self.counters.cache(self.pipe.embeddings)

    def close(self) -> None:
        """Finishes the edits that are here."""
        self.turns.close()
        for each in self.readers:
            each.shutdown()
        self.decoders.close()


def default_batch(bundle: Bundle) -> int:
    """Pictures to sample together by default: as many as fill a GPU.

    1 if a picture would depend on the others of its batch: DynamicQuantizeLinear has one scale for a whole tensor (a
    difference of up to 8 of 255 levels with INT8 activations; none with fp32, fp8 or int4 weights).
    """
    if any(b"DynamicQuantizeLinear" in bundle.content(entry.path) for entry in bundle.graphs.values()):
        return 1
    side = bundle.sampler.size_multiple
    tokens = max(width * height for width, height in bundle.sampler.preferred_sizes) // side**2
    return max(1, min(LARGEST_BATCH, FULL_BATCH_TOKENS // tokens))
