"""Running servers, `kontext-serve` as a process of its own, and how tests talk to them."""

from __future__ import annotations

import http.client
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

for _library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(_library)

from kontext.runtime import Pipeline  # noqa: E402  # after the skips

KEY = "a-key-of-the-tests-0123456789"


class Served:
    """`kontext-serve` with these words; a context."""

    def __init__(self, *words: object, log: Path, code: str | None = None) -> None:
        self.words = [*(["-m", "kontext.rest.cli"] if code is None else ["-c", code]), *map(str, words)]
        self.log = log

    def __enter__(self) -> Served:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.words, "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " http://" in line, (line, self.log.read_text())
        self.url = line.split()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ready(self) -> Served:
        self.until(lambda: self.send("GET", "/health/ready")[0] == 200)
        return self

    def until(self, true: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"it did not happen: {self.log.read_text()}"
            time.sleep(0.05)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (what JSON holds, if it is JSON) and headers of an answer, whatever the status."""
        connection = self.connection()
        headers = dict(headers or {})
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        if found.get("content-type", "").startswith("application/json"):
            return answer.status, json.loads(data), found
        return answer.status, data, found

    def metric(self, name: str) -> float:
        text = self.send("GET", "/metrics")[1].decode()
        values = [float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)]
        return sum(values)


@pytest.fixture(scope="session")
def rest_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rest")


@pytest.fixture(scope="session")
def serve(tiny_bundle: Path, rest_folder: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers of the random checkpoint's bundle; they end with the tests."""
    with ExitStack() as stack:
        count = 0

        def start(*words: object, bundle: bool = True) -> Served:
            nonlocal count
            count += 1
            named = [tiny_bundle, "--device", "cpu"] if bundle else []
            return stack.enter_context(Served(*named, *words, log=rest_folder / f"log-{count}"))

        yield start


@pytest.fixture(scope="session")
def rest(serve: Callable[..., Served]) -> Served:
    """One server for all tests that do it no harm."""
    return serve().ready()


@pytest.fixture(scope="session")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, device="cpu")


def form(fields: dict[str, Any], files: list[tuple[str, bytes]] = ()) -> tuple[bytes, dict[str, str]]:  # type: ignore[assignment]
    """A multipart body and its header."""
    parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
    parts += [(f'name="{name}"; filename="{i}.png"', data) for i, (name, data) in enumerate(files)]
    body = b"".join(
        b"--frontier\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return body + b"--frontier--\r\n", {"Content-Type": "multipart/form-data; boundary=frontier"}


def png(width: int = 48, height: int = 32) -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()
