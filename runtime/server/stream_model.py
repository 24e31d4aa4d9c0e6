"""The server's model `kontext_stream`: one pipeline that answers each request with a response a step and a picture.

It runs inside the Python backend of NVIDIA Triton Inference Server, whose batcher passes `execute` up to max_batch_size
requests. The repository's `1/model.py` exposes the class to the server.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from ...errors import ComputationError, KontextError
from ..backends.options import OnnxRuntimeOptions
from ..bundle import Bundle
from ..bundle_files import file_digest
from ..pipeline import InputFilter, OutputFilter, Pipeline
from . import contract, jobs, pictures
from .decoding import Decoded, Decoders
from .graphs import ServerGraphs
from .metrics import Metrics

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

MOST_WAITING = 64
"""Requests whose pictures are not decoded yet; further ones are refused."""

PATIENCE_SECONDS = 0.5
"""How long a batch waits for its pictures to be decoded; edits whose pictures take longer run later, so that they hold
nobody up. A picture of 12 million pixels takes 0.2 s."""


class StreamModel:
    """One instance of the model; `args` are those of the Python backend's `initialize`."""

    def __init__(
        self, args: Mapping[str, str], input_filter: InputFilter | None, output_filter: OutputFilter | None
    ) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.name = args["model_name"]
        self.largest = int(config["max_batch_size"])
        self.limits = contract.Limits.from_parameters(parameters)
        self.metrics = Metrics(self.name)
        self.readers = ThreadPoolExecutor(MOST_WAITING)
        self.room = threading.BoundedSemaphore(MOST_WAITING)
        self.later = ThreadPoolExecutor(1)
        self.lock = threading.Lock()
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        try:
            self.decoders = Decoders(seconds=self.limits.max_decode_seconds)
            self.pipe = load_pipeline(folder, parameters, args, input_filter, output_filter)
        except KontextError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> None:
        """Runs the edits of a batch, but for those whose pictures take long: they run when these are decoded."""
        waiting = [each for each in map(self.receive, requests) if each is not None]
        wait([each.decoded for each in waiting], PATIENCE_SECONDS)
        late = [each for each in waiting if not each.decoded.done()]
        for each in late:
            each.decoded.add_done_callback(lambda _, each=each: self.later.submit(self.run, [each]))  # type: ignore[misc]
        self.run([each for each in waiting if each not in late])

    def receive(self, request: Any) -> Waiting | None:
        """A request whose pictures are being decoded; None if it is answered with an error."""
        listener = Response(request, self.metrics)
        try:
            # The server frees the arrays when `execute` returns.
            arrays = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            jobs.check_arrays(arrays)
            listener.base64 = pictures.answers_in_base64(arrays, listener.asked_base64)
            if not self.room.acquire(blocking=False):
                raise Full("the server is busy decoding pictures: try again later")
        except Exception as error:
            listener.fail(error)
            return None
        decoded = self.readers.submit(pictures.read_pictures, arrays, self.limits, self.decoders.decode)
        decoded.add_done_callback(lambda _: self.room.release())
        return Waiting(listener, arrays, decoded)

    def run(self, waiting: Sequence[Waiting]) -> None:
        """Runs edits whose pictures are decoded. The pipeline does one thing at a time."""
        with self.lock:
            ready = []
            for each in waiting:
                try:
                    request, each.listener.warnings = jobs.read_request(
                        self.pipe, self.limits, each.arrays, each.decoded.result()
                    )
                except Exception as error:
                    each.listener.fail(error)
                else:
                    ready.append(jobs.Job(request, each.listener))
            for batch in jobs.group_jobs(ready, self.largest):
                self.metrics.batch(len(batch))
                jobs.run_jobs(self.pipe, batch, self.metrics.steps)


class Full(KontextError):
    """The server has no room for another request."""


@dataclass(eq=False)
class Waiting:
    """A request, and its pictures as they will be."""

    listener: Response
    arrays: Mapping[str, Any]
    decoded: Future[list[Decoded]]


def load_pipeline(
    folder: Path,
    parameters: Mapping[str, str],
    args: Mapping[str, str],
    input_filter: InputFilter | None,
    output_filter: OutputFilter | None,
) -> Pipeline:
    """The pipeline that config.pbtxt's parameters describe, on the device of this instance."""
    filters: dict[str, Any] = {"input_filter": input_filter, "output_filter": output_filter}
    bundle = Bundle.open(folder, digest=parameters.get("require_digest") or None)
    checked = parameters.get("verify") == "true"
    if checked:
        bundle.verify()
    if parameters.get("graphs") == "server":
        check_models(bundle, Path(args["model_repository"]).parent, weights=checked)
        return Pipeline(bundle, ServerGraphs(contract.UNARY), **filters)
    device = parameters.get("device") or ("cuda" if args["model_instance_kind"] == "GPU" else "cpu")
    if args["model_instance_kind"] == "GPU":
        show_only_gpu(int(args["model_instance_device_id"]))
    threads = parameters.get("threads")
    return Pipeline.load(
        bundle,
        device=device,
        backend=OnnxRuntimeOptions(int(threads)) if threads else "onnxruntime",
        low_memory=parameters.get("low_memory") == "true",
        **filters,
    )


def check_models(bundle: Bundle, models: Path, *, weights: bool) -> None:
    """Raises KontextError unless the server's models of the graphs, in `models`, are the bundle's graphs, with its
    weights if `weights`."""
    for graph, entry in bundle.graphs.items():
        version = models / f"{contract.UNARY}_{graph}" / "1"
        files = {version / "model.onnx": entry.path}
        if weights:
            files[version / entry.weights.relative_to(bundle.folder)] = entry.weights
        for path, original in files.items():
            wanted = bundle.files[original.relative_to(bundle.folder).as_posix()].sha256
            try:
                found = file_digest(path)
            except OSError as error:
                raise KontextError(f"cannot read {path}: {error.strerror}") from None
            if found != wanted:
                raise KontextError(f"{path} is not {original}: write the repository again")


def show_only_gpu(device: int) -> None:
    """Hides all GPUs but the one that the server chose for this process, so that it is the backend's first."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)


class Response:
    """Sends all responses of one request; the listener of its job."""

    def __init__(self, request: Any, metrics: Metrics) -> None:
        self.sender = request.get_response_sender()
        self.metrics = metrics
        self.id = request.request_id()
        self.started = time.monotonic()
        self.warnings: list[str] = []
        parameters = json.loads(request.parameters() or "{}")
        self.asked_base64 = parameters.get(contract.BASE64)
        self.base64 = True
        self.shows_progress = parameters.get(contract.PROGRESS) is not False
        self.cancel_file = cancel_file(str(parameters.get(contract.CANCEL_FILE, "")))

    def cancelled(self) -> bool:
        return bool(self.sender.is_cancelled()) or (
            self.cancel_file is not None and self.cancel_file.exists()
        )

    def progress(self, step: int, total: int) -> None:
        if self.shows_progress:
            self.sender.send(pb_utils.InferenceResponse(count(step, total)))

    def finish(self, picture: Image.Image) -> None:
        file = jobs.png(picture)
        tensors = [
            strings(contract.IMAGE.name, [base64.b64encode(file) if self.base64 else file]),
            strings(contract.WARNINGS.name, [text.encode() for text in self.warnings]),
        ]
        self.sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)
        self.end("ok")

    def fail(self, error: BaseException | None) -> None:
        outcome, code, message = explain(error)
        line = " ".join(message.split())
        if self.cancel_file is not None:
            line = f"{code}: {line}"  # the server drops the code between models; UNARY reads it here
        answer = pb_utils.TritonError(line, getattr(pb_utils.TritonError, code))
        self.sender.send(pb_utils.InferenceResponse(error=answer), flags=FINAL)
        self.end(outcome, message)

    def end(self, outcome: str, message: str = "") -> None:
        seconds = time.monotonic() - self.started
        self.metrics.edit(outcome, seconds)
        line = f"edit id={self.id or '-'} outcome={outcome} seconds={seconds:.3f}"
        if outcome == "failed":
            pb_utils.Logger.log_error(f"{line} error={message!r}")
        else:
            pb_utils.Logger.log_info(line)


def explain(error: BaseException | None) -> tuple[str, str, str]:
    """The metrics' outcome, the server's error code by name, and the caller's message of an error."""
    if error is None:
        return "cancelled", "CANCELLED", "cancelled"
    if isinstance(error, jobs.Refused):
        return "refused", "INVALID_ARG", str(error)
    if isinstance(error, Full):
        return "failed", "UNAVAILABLE", str(error)
    if isinstance(error, ComputationError):
        return "failed", "INTERNAL", str(error)
    if isinstance(error, KontextError):
        return "invalid", "INVALID_ARG", str(error)
    if isinstance(error, MemoryError):
        return "failed", "UNAVAILABLE", "not enough memory: try a smaller SIZE, or later"
    # Details of internal errors go to the log, not to callers.
    pb_utils.Logger.log_error(f"{type(error).__name__}: {error}")
    return "failed", "INTERNAL", contract.BROKEN


def cancel_file(name: str) -> Path | None:
    """The file by which the unary model reports that a caller disconnected; None for any name that is not its own."""
    return Path(tempfile.gettempdir()) / name if re.fullmatch("kontext-cancel-[0-9a-f]{32}", name) else None


def count(step: int, total: int) -> list[Any]:
    return [
        pb_utils.Tensor(contract.DONE.name, np.array([[step]], np.int32)),
        pb_utils.Tensor(contract.TOTAL.name, np.array([[total]], np.int32)),
    ]


def strings(name: str, values: list[bytes]) -> Any:
    """A tensor of bytes, [1, len(values)]."""
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return pb_utils.Tensor(name, array)
