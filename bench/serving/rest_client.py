"""Edits through `kontext-serve`, as a process on this machine or anywhere, for callers of the serving benchmark."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from ...errors import KontextError
from ...runtime.server_client import Answer, Edit, Progress, read_answer
from ..process_cost import own_command

BOUNDARY = "kontext-bench-frontier"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
START_SECONDS = 120
TIMEOUT_SECONDS = 600


class RestClient:
    """`server_client.Client` over REST, a connection for each edit. Threads may share a client."""

    def __init__(self, url: str) -> None:
        self.place = urlsplit(url).netloc

    def edit(self, edit: Edit, progress: Progress | None = None) -> Answer:
        """The answer to an edit; `progress` is not called. Raises KontextError if there is none."""
        answer = json.loads(post(self.place, form(edit)))
        return read_answer(base64.b64decode(answer["data"][0]["b64_json"]), answer["warnings"])

    def close(self) -> None:
        """Does nothing: connections end with their edits."""


def post(place: str, body: bytes) -> bytes:
    """The body of the answer to a form. Raises KontextError if it is no picture."""
    connection = http.client.HTTPConnection(place, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/v1/images/edits", body, HEADERS)
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise KontextError(f"kontext-serve does not answer: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise KontextError(f"kontext-serve says {response.status}: {data[:500].decode('utf-8', 'replace')}")
    return data


def form(edit: Edit) -> bytes:
    """The multipart form of an edit of references, without a mask."""
    fields: dict[str, Any] = {"prompt": edit.prompt, "seed": edit.seed, "response_format": "b64_json"}
    if edit.steps is not None:
        fields["steps"] = edit.steps
    if edit.size is not None:
        fields["size"] = "{}x{}".format(*edit.size)
    parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
    parts += [
        (f'name="image[]"; filename="{number}.png"\r\nContent-Type: image/png', file)
        for number, file in enumerate(edit.images)
    ]
    rows = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    ]
    return b"".join([*rows, f"--{BOUNDARY}--\r\n".encode()])


@contextlib.contextmanager
def rest_server(words: Sequence[str]) -> Iterator[str]:
    """The URL of a `kontext-serve` with these words, on a free port; it ends with the context.

    Raises KontextError if it does not become ready.
    """
    command = [*own_command("kontext-serve", "kontext.rest.cli"), *words, "--port", "0", "--quiet"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            url = line.split()[-1] if " http://" in line else ""
            deadline = time.monotonic() + START_SECONDS
            while not (url and is_ready(url)):
                if process.poll() is not None or not url or time.monotonic() > deadline:
                    process.kill()
                    errors = process.communicate()[1].strip().splitlines() or ["it says nothing"]
                    raise KontextError(f"kontext-serve did not start: {errors[-1]}")
                time.sleep(0.1)
            yield url
        finally:
            process.kill()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
