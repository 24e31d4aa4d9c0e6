"""The server's model `kontext_stream`: one pipeline that answers each request with a response a step and a picture.

It runs inside the Python backend of NVIDIA Triton Inference Server. `execute` only takes requests in: they wait, are
batched and take turns at a `desk`. The repository's `1/model.py` exposes the class to the server.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from ...errors import KontextError
from ..backends.options import OnnxRuntimeOptions
from ..bundle import Bundle
from ..bundle_files import file_digest
from ..embedding_cache import DEFAULT_BYTES
from ..pipeline import InputFilter, OutputFilter, Pipeline
from . import contract, jobs, pictures
from .desk import Desk
from .graphs import ServerGraphs
from .metrics import Metrics
from .outcomes import explain

LORAS_FOLDER = "loras"
"""Of the model's folder in the repository: who runs the server puts files of `kontext-export lora` there."""

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PLAIN_ID = re.compile(r"[\w.:/@+-]{1,100}", re.ASCII)


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
        warnings.simplefilter("ignore")  # `read_request` collects what concerns callers
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        try:
            self.pipe = load_pipeline(folder, parameters, args, input_filter, output_filter)
            loras = Path(args["model_repository"]) / LORAS_FOLDER
            self.desk = Desk(self.pipe, self.limits, self.largest, self.metrics, loras)
        except KontextError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> None:
        """Takes requests in and returns; they are answered when their turns come."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                listener = Response(request, sender, self.metrics)
            except (
                Exception
            ) as error:  # one that leaves `execute` fails the others in it, and ends the server
                pb_utils.Logger.log_error(f"{type(error).__name__}: {error}")
                answer = pb_utils.TritonError(contract.UNREADABLE, pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=answer), flags=FINAL)
                continue
            try:
                if listener.probe:
                    listener.answer_probe(self.desk.turns.stuck_seconds(), self.limits.max_seconds)
                    continue
                # The server frees the arrays when `execute` returns.
                arrays = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
                jobs.check_arrays(arrays)
                listener.base64 = pictures.answers_in_base64(arrays, listener.asked_base64)
                self.desk.submit(arrays, [listener])
            except Exception as error:
                listener.fail(error)

    def finalize(self) -> None:
        """Finishes the edits that are here."""
        self.desk.close()


def load_pipeline(
    folder: Path,
    parameters: Mapping[str, str],
    args: Mapping[str, str],
    input_filter: InputFilter | None,
    output_filter: OutputFilter | None,
) -> Pipeline:
    """The pipeline that config.pbtxt's parameters describe, on the device of this instance."""
    options: dict[str, Any] = {
        "input_filter": input_filter,
        "output_filter": output_filter,
        "embedding_cache": int(parameters.get("embedding_cache") or DEFAULT_BYTES),
    }
    bundle = Bundle.open(folder, digest=parameters.get("require_digest") or None)
    checked = parameters.get("verify") == "true"
    if checked:
        bundle.verify()
    if parameters.get("graphs") == "server":
        check_models(bundle, Path(args["model_repository"]).parent, weights=checked)
        return Pipeline(bundle, ServerGraphs(contract.UNARY), **options)
    device = parameters.get("device") or ("cuda" if args["model_instance_kind"] == "GPU" else "cpu")
    if args["model_instance_kind"] == "GPU":
        show_only_gpu(int(args["model_instance_device_id"]))
    threads = parameters.get("threads")
    return Pipeline.load(
        bundle,
        device=device,
        backend=OnnxRuntimeOptions(int(threads)) if threads else "onnxruntime",
        low_memory=parameters.get("low_memory") == "true",
        **options,
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

    def __init__(self, request: Any, sender: Any, metrics: Metrics) -> None:
        self.sender = sender
        self.metrics = metrics
        self.id = request.request_id()
        self.started = time.monotonic()
        self.warnings: list[str] = []
        parameters = json.loads(request.parameters() or "{}")
        self.asked_base64 = parameters.get(contract.BASE64)
        self.base64 = True
        self.shows_progress = parameters.get(contract.PROGRESS) is not False
        wanted = self.shows_progress and parameters.get(contract.PREVIEWS) is True
        self.on_preview: Callable[[Image.Image], object] | None = self.keep_preview if wanted else None
        self.preview: list[Any] = []
        """The tensor of the last one, which goes with the next step."""
        self.metadata = parameters.get(contract.METADATA) is not False
        self.probe = parameters.get(contract.PROBE) is True
        self.cancel_file = cancel_file(str(parameters.get(contract.CANCEL_FILE, "")))

    def cancelled(self) -> bool:
        with self.metrics.lock:
            left = bool(self.sender.is_cancelled())
        return left or (self.cancel_file is not None and self.cancel_file.exists())

    def begin(self) -> None: ...

    def progress(self, step: int, total: int) -> None:
        if self.shows_progress:
            self.sender.send(pb_utils.InferenceResponse([*count(step, total), *self.preview]))

    def keep_preview(self, picture: Image.Image) -> None:
        file = jobs.jpeg(picture)
        self.preview = [strings(contract.PREVIEW.name, [base64.b64encode(file) if self.base64 else file])]

    def finish(self, picture: Image.Image) -> None:
        file = jobs.png(picture, metadata=self.metadata)
        tensors = [
            strings(contract.IMAGE.name, [base64.b64encode(file) if self.base64 else file]),
            strings(contract.WARNINGS.name, [text.encode() for text in self.warnings]),
        ]
        self.sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)
        self.end("ok")

    def answer_probe(self, stuck: float, most: float) -> None:
        """Answers a probe: with an empty picture, or with an error if one step takes longer than a whole edit may."""
        if stuck > most:
            error = pb_utils.TritonError(f"a step takes {stuck:.0f} s", pb_utils.TritonError.INTERNAL)
            response = pb_utils.InferenceResponse(error=error)
        else:
            names = (contract.IMAGE.name, contract.WARNINGS.name)
            response = pb_utils.InferenceResponse([strings(name, [b""]) for name in names])
        self.sender.send(response, flags=FINAL)

    def fail(self, error: BaseException | None) -> None:
        outcome, code, message = explain(error, pb_utils.Logger.log_error)
        line = " ".join(message.split())
        if self.cancel_file is not None:
            line = f"{code}: {line}"  # the server drops the code between models; UNARY reads it here
        answer = pb_utils.TritonError(line, getattr(pb_utils.TritonError, code))
        self.sender.send(pb_utils.InferenceResponse(error=answer), flags=FINAL)
        self.end(outcome, message)

    def end(self, outcome: str, message: str = "") -> None:
        seconds = time.monotonic() - self.started
        self.metrics.edit(outcome, seconds)
        line = f"edit id={loggable(self.id)} outcome={outcome} seconds={seconds:.3f}"
        if outcome == "failed":
            pb_utils.Logger.log_error(f"{line} error={message!r}")
        else:
            pb_utils.Logger.log_info(line)


def loggable(request_id: str) -> str:
    """A caller's id for the log: as it is if it is a plain word, else quoted and cut, so that it can be taken for no
    other field; "-" for none."""
    if not request_id:
        return "-"
    return request_id if PLAIN_ID.fullmatch(request_id) else json.dumps(request_id[:100])


def cancel_file(path: str) -> Path | None:
    """The file by which the unary model reports that a caller disconnected; None for any path that is not its own."""
    own = rf"{re.escape(tempfile.gettempdir())}/kontext-cancel-[0-9a-f]{{16}}/[0-9a-f]{{32}}"
    return Path(path) if re.fullmatch(own, path) else None


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
