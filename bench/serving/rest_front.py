"""What the REST endpoint adds to an edit, and where its time goes.

One process has the pipeline, the endpoint behind a real uvicorn, and the caller. The same edit is made in turn by
`Pipeline.edit` of a decoded picture, from file to file as every program that has a picture's file needs it, and by
`POST /v1/images/edits`.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...errors import KontextError
from ...runtime.images import read_picture
from ...runtime.pipeline import Pipeline, StepCallback
from ...runtime.request import Request
from ...runtime.server.contract import Limits
from ...runtime.server.jobs import png
from ...runtime.server_client import Edit, read_answer
from ..timing import interleave
from .rest_client import form, post

STEPS = 1
"""Few, so that what is added can be seen beside the edit."""

EDIT, FILES, REST = "edit", "files", "rest"
WARMUP = 3
WAIT_SECONDS = 60.0

SPANS = {
    "connection and head": ("sent", "app"),
    "form and its fields": ("app", "submit"),
    "to the decoder": ("submit", "decode"),
    "decoding the picture": ("decode", "decoded"),
    "to the pipeline": ("decoded", "make"),
    "the edit": ("make", "made"),
    "back to the endpoint": ("made", "picture"),
    "PNG and base64": ("picture", "pictured"),
    "JSON and the answer": ("pictured", "received"),
}
"""Part of a request → the two marks that it lies between; together they are the whole request."""


class Marks:
    """When the request that is under way came by which place, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def mark(self, name: str) -> None:
        self.times[name] = time.perf_counter()

    def spans(self) -> dict[str, float]:
        """Seconds of each of SPANS."""
        return {name: self.times[end] - self.times[begin] for name, (begin, end) in SPANS.items()}

    def around(self, call: Callable[..., Any], begin: str, end: str) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            self.mark(begin)
            try:
                return call(*args, **kwargs)
            finally:
                self.mark(end)

        return marked

    def around_coroutine(self, call: Callable[..., Any], begin: str, end: str) -> Callable[..., Any]:
        async def marked(*args: Any, **kwargs: Any) -> Any:
            self.mark(begin)
            try:
                return await call(*args, **kwargs)
            finally:
                self.mark(end)

        return marked


class MarkedPipeline(Pipeline):
    marks: Marks | None = None

    def make(self, request: Request, callback: StepCallback | None, progress: bool) -> list[Image.Image]:
        if self.marks is None:
            return super().make(request, callback, progress)
        self.marks.mark("make")
        try:
            return super().make(request, callback, progress)
        finally:
            self.marks.mark("made")


class Endpoint:
    """The REST endpoint of a pipeline in this process, listening in a thread; a context. `marks` has what its last
    request did when."""

    def __init__(self, pipe: MarkedPipeline) -> None:
        from ...rest.listening import bind, make_server
        from ...rest.local import Local
        from ...rest.metrics import Metrics
        from ...rest.service import make_service

        self.marks = Marks()
        metrics, limits = Metrics(pipe.bundle.name), Limits()
        engine = Local(pipe, limits, metrics)
        pipe.marks = self.marks
        self.service = make_service(engine, metrics, limits, max_wait=WAIT_SECONDS)
        replaced: Sequence[tuple[Any, str, Any]] = (
            (engine, "submit", self.marks.around(engine.submit, "submit", "submitted")),
            (
                engine.desk.decoders,
                "decode",
                self.marks.around(engine.desk.decoders.decode, "decode", "decoded"),
            ),
            (
                self.service.answers,
                "picture",
                self.marks.around_coroutine(self.service.answers.picture, "picture", "pictured"),
            ),
        )
        for owner, name, marked in replaced:
            setattr(owner, name, marked)
        self.listener = bind("127.0.0.1", 0)
        self.place = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.server = make_server(self, 0, self.service.answers.cancel_all)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """The service as an ASGI application."""
        if scope["type"] == "http":
            self.marks.mark("app")
        await self.service.guard(scope, receive, send)

    def post(self, body: bytes) -> bytes:
        """The body of the answer to a form. Raises KontextError if it is no picture."""
        self.marks.mark("sent")
        answer = post(self.place, body)
        self.marks.mark("received")
        return answer

    def __enter__(self) -> Endpoint:
        self.thread.start()
        while not self.server.started:
            if not self.thread.is_alive():
                raise KontextError("the endpoint did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.service.close()


def measure_front(
    bundle: Path, edit: Edit, repeat: int, *, device: str = "cpu", progress: bool = False
) -> list[dict[str, Any]]:
    """For a small picture and a large one: seconds of the three ways to make the edit, how much more the endpoint
    takes than each of the others, and the parts of its requests.

    Args:
        bundle: its folder.
        edit: what is edited and how; with STEPS steps.
        repeat: rounds; each makes the edit each way.
        device: of the pipeline.

    Raises:
        KontextError: the bundle cannot be opened, or the pictures are not the same.
    """
    pipe = MarkedPipeline.load(bundle, device=device)
    assert isinstance(pipe, MarkedPipeline)
    (small,) = edit.images
    results = []
    with Endpoint(pipe) as endpoint:
        for file in (small, photograph(small)):
            with tqdm(total=3 * (WARMUP + repeat), desc="REST", unit="edit", disable=not progress) as bar:
                results.append(measure_picture(pipe, endpoint, edit, file, repeat, bar.update))
    return results


def measure_picture(
    pipe: Pipeline,
    endpoint: Endpoint,
    edit: Edit,
    file: bytes,
    repeat: int,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """One entry of `measure_front`, of a picture's file."""
    picture = read_picture(io.BytesIO(file), "the picture").convert("RGB")
    body = form(Edit(edit.prompt, [file], STEPS, seed=edit.seed, size=edit.size))
    spans: list[dict[str, float]] = []

    def plain(source: Image.Image) -> Image.Image:
        return pipe.edit(source, edit.prompt, steps=STEPS, seed=edit.seed, size=edit.size)

    def from_file_to_file() -> bytes:
        return png(plain(read_picture(io.BytesIO(file), "the picture").convert("RGB")))

    sides: dict[str, Callable[[], Any]] = {
        EDIT: lambda: plain(picture),
        FILES: from_file_to_file,
        REST: lambda: endpoint.post(body),
    }

    def timed(name: str) -> float:
        began = time.perf_counter()
        outcome = sides[name]()
        seconds = time.perf_counter() - began
        if name == REST:
            spans.append(endpoint.marks.spans())
            check_same(outcome, expected)
        return seconds

    expected = np.asarray(plain(picture))
    seconds = interleave({name: partial(timed, name) for name in sides}, repeat, warmup=WARMUP, done=done)
    parts = spans[WARMUP:]
    return {
        "size": list(picture.size),
        "bytes": len(file),
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "adds": {name: quartiles(np.subtract(seconds[REST], seconds[name])) for name in (EDIT, FILES)},
        "spans": {name: round(float(np.median([each[name] for each in parts])), 6) for name in SPANS},
    }


def check_same(answer: bytes, expected: np.ndarray[Any, Any]) -> None:
    file = base64.b64decode(json.loads(answer)["data"][0]["b64_json"])
    if not np.array_equal(np.asarray(read_answer(file, ()).picture), expected):
        raise KontextError("the endpoint's picture is not the pipeline's: a comparison would be meaningless")


def quartiles(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, Any]:
    """The median and the quartiles, and the values."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "median": round(float(median), 6),
        "q1": round(float(low), 6),
        "q3": round(float(high), 6),
        "samples": [round(float(each), 6) for each in values],
    }


def photograph(file: bytes) -> bytes:
    """The picture at 1024x1024 with a camera's noise: a PNG file of about 1 MB."""
    picture = read_picture(io.BytesIO(file), "the picture").convert("RGB")
    large = np.asarray(picture.resize((1024, 1024), Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(0).normal(0, 0.9, large.shape)
    noisy = Image.fromarray(np.clip(np.rint(large + noise), 0, 255).astype(np.uint8))
    target = io.BytesIO()
    noisy.save(target, "PNG")
    return target.getvalue()
