"""The server's model `kontext`: forwards each request to `kontext_stream` and answers once, with the picture.

The server streams over gRPC and server-sent events only; this model is for all other clients. It has no weights: a
request waits in a thread here and in the queue of `kontext_stream`, where it is batched with others.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ...temporary_folder import temporary_folder
from . import contract

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
THREADS = 256
"""Requests that the batcher sees at a time; others wait for a thread."""

POLL_SECONDS = 0.05


class UnaryModel:
    """The model; one instance is enough, since its threads only wait."""

    def __init__(self) -> None:
        self.resources = contextlib.ExitStack()
        self.folder = self.resources.enter_context(temporary_folder("cancel"))
        self.threads = ThreadPoolExecutor(THREADS)
        self.probes = ThreadPoolExecutor(2)  # they must not wait behind edits
        self.waiting: dict[Path, Any] = {}
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                # The server frees the request's tensors when this function returns.
                inputs = [pb_utils.Tensor(each.name(), each.as_numpy().copy()) for each in request.inputs()]
                parameters = json.loads(request.parameters() or "{}")
                threads = self.probes if parameters.get(contract.PROBE) is True else self.threads
                threads.submit(self.forward, inputs, parameters, request.request_id(), sender)
            except (
                Exception
            ) as error:  # an exception that leaves `execute` fails the others in it, and their server
                pb_utils.Logger.log_error(f"{type(error).__name__}: {error}")
                unreadable = isinstance(error, UnicodeDecodeError)
                answer = ("INVALID_ARG", contract.UNREADABLE) if unreadable else ("INTERNAL", contract.BROKEN)
                sender.send(failed(*answer), flags=FINAL)

    def forward(self, inputs: list[Any], parameters: dict[str, Any], identity: str, sender: Any) -> None:
        """Answers one request with the picture or the error of `kontext_stream`."""
        response = failed("INTERNAL", contract.BROKEN)
        try:
            with self.watched(sender) as cancel_file:
                response = edit(inputs, {**parameters, contract.CANCEL_FILE: str(cancel_file)}, identity)
        except Exception as error:
            pb_utils.Logger.log_error(f"{type(error).__name__}: {error}")
        finally:
            sender.send(response, flags=FINAL)

    @contextlib.contextmanager
    def watched(self, sender: Any) -> Iterator[Path]:
        """A path; the file is created if the caller disconnects inside this context.

        In this server (2.51) a model cannot cancel the requests that it sends to another model, hence the file, which
        `kontext_stream` looks for after every step.
        """
        file = self.folder / secrets.token_hex(16)
        with self.lock:
            self.waiting[file] = sender
        try:
            yield file
        finally:
            with self.lock:
                del self.waiting[file]
                file.unlink(missing_ok=True)

    def watch(self) -> None:
        while not self.stopped.wait(POLL_SECONDS):
            with self.lock:
                for file, sender in self.waiting.items():
                    if sender.is_cancelled():
                        with contextlib.suppress(OSError):  # then the edit goes on to its end
                            file.touch()

    def finalize(self) -> None:
        self.stopped.set()
        self.watcher.join()
        self.threads.shutdown(wait=True)
        self.probes.shutdown(wait=True)
        self.resources.close()


def edit(inputs: list[Any], parameters: dict[str, Any], identity: str) -> Any:
    """The response of `kontext_stream` to a request with these tensors."""
    names = [tensor.name for tensor in contract.OUTPUTS[contract.UNARY]]
    request = pb_utils.InferenceRequest(
        model_name=contract.STREAM,
        requested_output_names=names,
        inputs=inputs,
        request_id=identity,
        parameters={**parameters, contract.PROGRESS: False},
    )
    outputs = []
    for response in request.exec(decoupled=True):
        if response.has_error():
            return failed(*code_and_message(response.error().message()))
        # The server frees the tensors' memory together with the response.
        outputs += [
            pb_utils.Tensor(each.name(), each.as_numpy().copy()) for each in response.output_tensors()
        ]
    return pb_utils.InferenceResponse(outputs) if outputs else failed("INTERNAL", contract.BROKEN)


def code_and_message(text: str) -> tuple[str, str]:
    """Code and message of an error: `kontext_stream` puts its code in front, the server in between does not."""
    code, _, message = text.partition(": ")
    if code in contract.ERROR_CODES:
        return code, message
    return ("UNAVAILABLE" if "maximum queue size" in text else "INTERNAL"), text


def failed(code: str, message: str) -> Any:
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    )
