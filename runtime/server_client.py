"""`kontext-edit --server URL`: edits on an inference server that serves what `kontext-export BUNDLE --triton` wrote.

http(s):// needs only the standard library, grpc(s):// needs tritonclient (the extra `serve`). With
both, the server stops sampling when the caller disconnects, and an edit that the server could not take or finish (it is
full, or restarts) is sent again. What it refused is not.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import math
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from PIL import Image

from ..errors import KontextError
from ..installation import install_command
from .images import read_picture
from .metadata import KEY, read_metadata
from .noise import check_seed
from .picture_metadata import metadata_text
from .sent_pictures import smaller_files, smaller_mask
from .server import contract

CONNECT_SECONDS = 10
SILENCE_SECONDS = 1800
"""Timeout between two responses, with the time in the server's queue."""

RETRY_SECONDS = 60
"""How long an edit is tried again after the server broke or could not take it; a small one restarts in 5 s."""

PAUSES = (0.5, 8.0)
"""Seconds before the first new try, and at most; each pause is twice the last one."""

MOST_BROKEN = 3
"""Times that the server may break during an edit: an edit that breaks it must not do so for a minute."""

UNAVAILABLE = (429, 502, 503, 504)
"""HTTP statuses of a server, or of a proxy in front of it, that cannot take an edit now."""

MAX_CONCURRENT = 32
"""Edits that one command sends at a time."""

STUB_DIED = "is not healthy"
QUEUE_FULL = "maximum queue size"
"""Parts of the server's own messages: a model's process has died; the queue is full."""

MOST_SAID = 65536
"""Bytes that are read of an answer that is no edit's."""

ANSWER = "the server's answer"

PICTURES = [each.name for each in contract.PICTURES]

PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}


@dataclass(frozen=True)
class Edit:
    """One picture to request; None stands for the bundle's default."""

    prompt: str
    images: Sequence[bytes] = ()
    """Reference pictures as PNG, JPEG or WebP files."""
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    size: tuple[int, int] | None = None
    reference_method: str | None = None
    reference_size: str | None = None
    mask: bytes | None = None
    """A picture as in `images`, as is `init_image`."""
    mask_blur: int = 0
    strength: float = 1.0
    init_image: bytes | None = None
    paste_back: bool = False
    negative_prompt: str | None = None
    true_cfg: float = 1.0
    cfg_until: float = 1.0
    loras: Sequence[str] = ()
    """Each NAME or NAME:WEIGHT, of the server's folder."""
    on_preview: Callable[[Image.Image], object] | None = None
    """Called after each step, before the client's `progress`, with what the picture would become."""

    @property
    def parameters(self) -> dict[str, bool]:
        """Of the request, beside `base64`."""
        return {} if self.on_preview is None else {contract.PREVIEWS: True}

    def show_preview(self, file: bytes) -> None:
        """Passes a preview of the server's on."""
        if self.on_preview is not None:
            self.on_preview(read_picture(io.BytesIO(file), "the server's preview", formats=("JPEG",)))

    def values(self) -> dict[str, list[Any]]:
        """Tensor name → values, without those that the bundle's defaults fill in.

        Raises KontextError for values that no tensor can hold; the server refuses other wrong ones.
        """
        check_seed(self.seed)
        for name, scale in (
            ("guidance", self.guidance),
            ("strength", self.strength),
            ("true_cfg", self.true_cfg),
            ("cfg_until", self.cfg_until),
        ):
            if scale is not None and not math.isfinite(scale):
                raise KontextError(f"{name} must be a finite number, not {scale}")
        for name, number in (
            ("steps", self.steps),
            ("width", self.size and self.size[0]),
            ("height", self.size and self.size[1]),
            ("mask_blur", self.mask_blur),
        ):
            if number is not None and not 0 <= number < 2**31:
                raise KontextError(f"{name} {number} is out of range")
        words = {
            contract.REFERENCE_METHOD.name: self.reference_method,
            contract.REFERENCE_SIZE.name: self.reference_size,
        }
        given: dict[str, list[Any] | None] = {
            contract.PROMPT.name: [prompt_bytes(self.prompt)],
            contract.IMAGES.name: list(self.images) or None,
            contract.STEPS.name: None if self.steps is None else [self.steps],
            contract.GUIDANCE.name: None if self.guidance is None else [self.guidance],
            contract.SEED.name: [self.seed],
            contract.SIZE.name: None if self.size is None else list(self.size),
            **{name: None if word is None else [word.encode()] for name, word in words.items()},
            **self.added(),
            contract.LORAS.name: [each.encode() for each in self.loras] or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    def added(self) -> dict[str, list[Any] | None]:
        """The values of `contract.ADDED`, None for those that change nothing."""
        negative = None if self.negative_prompt is None else prompt_bytes(self.negative_prompt)
        given = (
            (contract.MASK, self.mask, None),
            (contract.MASK_BLUR, self.mask_blur, 0),
            (contract.STRENGTH, self.strength, 1),
            (contract.INIT_IMAGE, self.init_image, None),
            (contract.PASTE_BACK, self.paste_back, False),
            (contract.NEGATIVE_PROMPT, negative, None),
            (contract.TRUE_CFG, self.true_cfg, 1),
            (contract.CFG_UNTIL, self.cfg_until, 1),
        )
        return {tensor.name: None if value == default else [value] for tensor, value, default in given}

    def smaller(self) -> Edit:
        """The same edit with its pictures as `smaller_files` makes them."""
        files = [*self.images, *([] if self.init_image is None else [self.init_image])]
        files = smaller_files(files) if files else []
        return replace(
            self,
            images=files[: len(self.images)] if self.images else self.images,
            init_image=None if self.init_image is None else files[-1],
            mask=None if self.mask is None else smaller_mask(self.mask),
        )

    def arrays(self) -> dict[str, Any]:
        """Tensor name → array with the batch dimension. Raises KontextError as `values`."""
        import numpy as np

        from .server.jobs import NUMPY_TYPES

        types = {tensor.name: NUMPY_TYPES[tensor.datatype] for tensor in contract.INPUTS}
        return {name: np.array([value], dtype=types[name]) for name, value in self.values().items()}


@dataclass(frozen=True)
class Answer:
    """The result of an edit."""

    picture: Image.Image
    warnings: tuple[str, ...]


Progress = Callable[[int, int], object]
"""Called with (steps done, steps in all) of one edit."""


class Unavailable(KontextError):
    """The server could not take an edit, or did not finish it; another try may succeed."""

    def __init__(self, message: str, *, taken: bool = False) -> None:
        super().__init__(message)
        self.taken = taken
        """Whether the server had the edit when it broke."""


class Unreachable(KontextError):
    """There is no server at the address, or none that answers in time."""


class Client(Protocol):
    def edit(self, edit: Edit, progress: Progress | None = None) -> Answer:
        """Runs an edit. Raises KontextError with the server's error, or if the server cannot be reached."""

    def close(self) -> None:
        """Cancels the edits that are still running, here and on the server."""


def connect(url: str) -> Client:
    """The client for a URL. It connects with the first edit.

    Raises:
        KontextError: not an http, https, grpc or grpcs URL, or tritonclient is missing.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise KontextError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise KontextError(f"{url!r} is not a server's URL, such as http://HOST:8000 or grpc://HOST:8001")
    address = Address(
        parts.hostname, port or PORTS[parts.scheme], parts.scheme.endswith("s"), parts.path.rstrip("/")
    )
    return HttpClient(address) if parts.scheme.startswith("http") else GrpcClient(address)


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    encrypted: bool
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def edit_all(
    client: Client, edits: Sequence[Edit], on_step: Callable[[int], object] | None = None
) -> list[Answer]:
    """Runs all edits at the same time, so that the server can batch them.

    Args:
        on_step: called after each step of each edit, with that edit's number of steps.

    Returns:
        The answers in the order of the edits.

    Raises:
        KontextError: the first error of any edit; the others are cancelled.
    """

    def progress(step: int, total: int) -> None:
        if on_step is not None:
            on_step(total)

    pool = ThreadPoolExecutor(min(len(edits), MAX_CONCURRENT))
    try:
        futures = [pool.submit(client.edit, each, progress) for each in edits]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()  # raises the first error
        return [future.result() for future in futures]
    except BaseException:
        client.close()  # wakes the threads that wait for answers
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prompt_bytes(prompt: str) -> bytes:
    try:
        return prompt.encode("utf-8")
    except UnicodeEncodeError:  # bytes on the command line that are not UTF-8 become lone surrogates
        raise KontextError("the prompt is not valid Unicode text") from None


def read_answer(image: bytes, warnings: Sequence[bytes | str]) -> Answer:
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in warnings]
    picture = read_picture(io.BytesIO(image), ANSWER, formats=("PNG",))
    text = metadata_text(picture)
    picture.info = {}
    if text is not None:
        try:
            read_metadata(text, ANSWER)
            picture.info[KEY] = json.loads(text)
        except KontextError as error:
            texts.append(f"{error}: they are not kept")
    return Answer(picture, tuple(texts))


class TooLarge(KontextError):
    """What is before the server takes no request of this size."""


class Patient:
    """The half of a client that tries an edit again; the other half is `try_edit`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.reached = False
        """Whether the server has ever been there. Until then a connection that fails is a mistake in the URL."""
        self.closed = threading.Event()

    def try_edit(self, edit: Edit, progress: Progress | None) -> Answer:
        """As `Client.edit`, once. Raises Unavailable where another try may succeed."""
        raise NotImplementedError

    def known_inputs(self) -> set[str]:
        """The names of the inputs that the server takes."""
        raise NotImplementedError

    def check_inputs(self, edit: Edit) -> None:
        """Raises KontextError if the server is too old for what the edit asks."""
        asked = [each.name for each in contract.ADDED if each.name in edit.values()]
        if asked and (unknown := set(asked) - self.known_inputs()):
            raise KontextError(
                f"{self.address} does not take {', '.join(each for each in asked if each in unknown)}: its repository "
                "was written by an older kontext-export; write it again"
            )

    def edit(self, edit: Edit, progress: Progress | None = None) -> Answer:
        """As `Client.edit`; `progress` is called with each step once, however often the edit is tried."""
        deadline, pause, broken, seen = 0.0, PAUSES[0], 0, 0

        def only_new(step: int, total: int) -> None:
            nonlocal seen
            if progress is not None and step > seen:
                seen = step
                progress(step, total)

        warnings: tuple[str, ...] = ()
        while True:
            try:
                answer = self.try_edit(edit, only_new)
                return replace(answer, warnings=(*warnings, *answer.warnings))
            except TooLarge as error:
                smaller = edit.smaller()
                if warnings or smaller == edit:
                    raise
                edit, warnings = smaller, (f"{error}: they are sent as smaller JPEG files",)
                continue
            except Unavailable as error:
                if error.taken or not deadline:
                    deadline = time.monotonic() + RETRY_SECONDS
                broken += error.taken
                wait = pause * random.uniform(0.8, 1.2)  # callers that failed together come back apart
                if broken == MOST_BROKEN or time.monotonic() + wait > deadline or self.closed.wait(wait):
                    raise
            pause = min(2 * pause, PAUSES[1])


class HttpClient(Patient):
    """Server-sent events over HTTP (the server's `generate_stream`). Threads may share a client."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.open: set[socket.socket] = set()

    def try_edit(self, edit: Edit, progress: Progress | None) -> Answer:
        body: dict[str, Any] = {"parameters": {contract.BASE64: True, **edit.parameters}}
        for name, values in edit.values().items():
            if name in PICTURES:
                values = [base64.b64encode(image) for image in values]
            words = [value.decode() if isinstance(value, bytes) else value for value in values]
            body[name] = words if len(words) > 1 else words[0]
        try:
            self.check_inputs(edit)
            for event in self.events(json.dumps(body).encode()):
                if "error" in event:
                    raise refusal(str(event["error"]))
                if contract.IMAGE.name in event:
                    warned = event.get(contract.WARNINGS.name, [])
                    image = self.decode(event[contract.IMAGE.name])
                    return read_answer(image, [warned] if isinstance(warned, str) else warned)
                if contract.PREVIEW.name in event:
                    edit.show_preview(self.decode(event[contract.PREVIEW.name]))
                if progress is not None and contract.DONE.name in event:
                    progress(int(event[contract.DONE.name]), int(event[contract.TOTAL.name]))
        except (TimeoutError, ssl.SSLError) as error:
            raise Unreachable(f"{self.address}: {reason(error)}") from None
        except ConnectionRefusedError as error:
            kind = Unavailable if self.reached else Unreachable
            raise kind(f"{self.address}: {reason(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            if not self.reached:
                raise Unreachable(f"{self.address}: {reason(error)}") from None
            raise Unavailable(f"{self.address}: {reason(error)}", taken=True) from None
        raise Unavailable(f"{self.address} ended its answer without a picture", taken=True)

    def connect(self) -> http.client.HTTPConnection:
        make = http.client.HTTPSConnection if self.address.encrypted else http.client.HTTPConnection
        connection = make(self.address.host, self.address.port, timeout=CONNECT_SECONDS)
        connection.connect()
        self.reached = True
        return connection

    def known_inputs(self) -> set[str]:
        connection = self.connect()
        try:
            connection.request("GET", f"{self.address.path}/v2/models/{contract.STREAM}")
            response = connection.getresponse()
            data = response.read(MOST_SAID)
        finally:
            connection.close()
        if response.status in UNAVAILABLE:
            raise Unavailable(f"{self.address} says {status(response)}{said(data)}")
        try:
            return {each["name"] for each in json.loads(data)["inputs"]}
        except (ValueError, LookupError, TypeError):
            raise KontextError(
                f"{self.address} does not say which inputs it takes: {status(response)}{said(data)}"
            ) from None

    def decode(self, text: Any) -> bytes:
        """A picture's file of its base64."""
        try:
            return base64.b64decode(text, validate=True)
        except (ValueError, TypeError):
            raise KontextError(f"{self.address} sent a picture that is not base64") from None

    def events(self, body: bytes) -> Iterator[dict[str, Any]]:
        """Yields the responses to one request as they arrive."""
        connection = self.connect()
        sock = connection.sock
        self.open.add(sock)
        try:
            sock.settimeout(SILENCE_SECONDS)
            path = f"{self.address.path}/v2/models/{contract.STREAM}/generate_stream"
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status in UNAVAILABLE:
                raise Unavailable(f"{self.address} says {status(response)}{said(response.read(MOST_SAID))}")
            if response.status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise TooLarge(
                    f"{self.address} does not take a prompt and pictures of {len(body) / 1e6:.1f} MB in base64"
                    f"{said(response.read(MOST_SAID))}"
                )
            for row in response:
                text = row.removeprefix(b"data: ").strip()
                if not text:
                    continue
                try:
                    event = json.loads(text)
                except ValueError:
                    raise KontextError(
                        f"{self.address} is not an inference server: {status(response)}"
                    ) from None
                if not isinstance(event, dict):
                    raise KontextError(f"{self.address} is not an inference server: {status(response)}")
                if response.status not in (200, 400):  # 400: the request is wrong; others: the server failed
                    raise KontextError(
                        f"{self.address} says {status(response)}: {event.get('error', text.decode())}"
                    )
                yield event
            if response.status != 200:
                raise KontextError(f"{self.address} says {status(response)}")
        finally:
            self.open.discard(sock)
            connection.close()

    def close(self) -> None:
        self.closed.set()
        for sock in list(self.open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it; close() would not


def refusal(message: str) -> KontextError:
    """The error for what a server says about an edit. With `generate_stream` its status is 400 for every fault."""
    if STUB_DIED in message:
        return Unavailable(message, taken=True)
    return Unavailable(message) if QUEUE_FULL in message else KontextError(message)


def said(body: bytes) -> str:
    """What to append to a status: the error of an answer in JSON, if it is one."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return f": {json.loads(body.removeprefix(b'data: '))['error']}"
    return ""


def status(response: http.client.HTTPResponse) -> str:
    return f"{response.status} {response.reason}"


def reason(error: BaseException) -> str:
    """Why a server cannot be reached, for a message."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"no encrypted connection: {error.reason}"
    return str(getattr(error, "strerror", None) or error or type(error).__name__).lower()


class GrpcClient(Patient):
    """gRPC, a stream for each edit. Threads may share a client."""

    def __init__(self, address: Address) -> None:
        try:
            import tritonclient.grpc
        except (ImportError, RuntimeError):  # RuntimeError: tritonclient without its extra `grpc`
            raise KontextError(
                f"grpc:// needs tritonclient: {install_command('serve')}, or use http://"
            ) from None
        super().__init__(address)
        self.library = tritonclient.grpc
        self.open: set[Any] = set()

    def try_edit(self, edit: Edit, progress: Progress | None) -> Answer:
        from tritonclient.utils import InferenceServerException

        inputs = self.inputs(edit)
        received: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client = self.library.InferenceServerClient(str(self.address), ssl=self.address.encrypted)
        self.open.add(client)
        try:
            self.check_inputs(edit)
            client.start_stream(callback=lambda result, error: received.put((result, error)))
            parameters = {contract.BASE64: False, **edit.parameters}
            client.async_stream_infer(contract.STREAM, inputs, parameters=parameters)
            while True:
                result, error = received.get(timeout=SILENCE_SECONDS)
                if error is not None:
                    raise self.fault(error)
                self.reached = True
                image = result.as_numpy(contract.IMAGE.name)
                if image is not None:
                    warned = result.as_numpy(contract.WARNINGS.name)
                    return read_answer(image.flat[0], [] if warned is None else warned.ravel().tolist())
                preview = result.as_numpy(contract.PREVIEW.name)
                if preview is not None:
                    edit.show_preview(preview.flat[0])
                step, total = (result.as_numpy(each.name) for each in (contract.DONE, contract.TOTAL))
                if progress is not None and step is not None and total is not None:
                    progress(int(step.flat[0]), int(total.flat[0]))
        except queue.Empty:
            raise Unreachable(f"{self.address}: no answer in time") from None
        except InferenceServerException as error:  # the stream broke; the callback may have the reason
            error = error if received.empty() else received.get()[1] or error
            raise self.fault(error) from None
        finally:
            self.open.discard(client)
            client.stop_stream(cancel_requests=True)
            client.close()

    def known_inputs(self) -> set[str]:
        with self.library.InferenceServerClient(str(self.address), ssl=self.address.encrypted) as client:
            metadata = client.get_model_metadata(contract.STREAM, client_timeout=CONNECT_SECONDS)
        return {each.name for each in metadata.inputs}

    def fault(self, error: Any) -> KontextError:
        """The error for one of tritonclient's: with a status the connection failed, else the server says so."""
        if not error.status():
            return refusal(error.message())
        lost = self.reached and "UNAVAILABLE" in error.status()
        return (Unavailable if lost else Unreachable)(f"{self.address}: {error.message()}")

    def inputs(self, edit: Edit) -> list[Any]:
        types = {tensor.name: tensor.datatype for tensor in contract.INPUTS}
        tensors = []
        for name, array in edit.arrays().items():
            tensors.append(self.library.InferInput(name, list(array.shape), types[name]))
            tensors[-1].set_data_from_numpy(array)
        return tensors

    def close(self) -> None:
        self.closed.set()
        for client in list(self.open):
            client.stop_stream(cancel_requests=True)
