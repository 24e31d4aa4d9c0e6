"""What the tests of this folder share: the random checkpoint's bundle as a pipeline, diffusers' pipeline of the same
weights, and a real server with a content filter."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kontext.bench.serving.environment import ENVIRONMENT, is_ready
from kontext.bench.serving.local_server import LocalServer, free_ports
from kontext.runtime import Pipeline

GRPC_CALLS = Path(__file__).with_name("grpc_calls.py")

FILTERS = """
from kontext.errors import KontextError


def input_filter(references, prompt):
    if "forbidden" in prompt:
        raise KontextError("this prompt is not allowed here")
    if "broken filter" in prompt:
        raise ZeroDivisionError("secret of the filter")


def output_filter(picture):
    return picture
"""


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, device="cpu")


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    """diffusers' pipeline of the same weights."""
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.FluxKontextPipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def server_environment() -> Path:
    if not is_ready():
        pytest.skip("the server's environment is not there: `make server` makes build/server")
    return ENVIRONMENT


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


def send(
    url: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """The status and the body of an answer, whatever the status; a GET without a body."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as fault:
        return fault.code, fault.read()


class Served(LocalServer):
    """A local server, and how tests talk to it; fixtures hand it out, since test modules cannot import each other."""

    def post(
        self, path: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """The status and the body of an answer, whatever the status."""
        return send(f"{self.http}/v2/{path}", body, headers)

    def read_metrics(self) -> dict[str, float]:
        """The server's metrics by name and labels."""
        with urllib.request.urlopen(self.metrics, timeout=60) as answer:
            lines = [
                line for line in answer.read().decode().splitlines() if line and not line.startswith("#")
            ]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def outcomes(self, outcome: str) -> int:
        """Edits that have ended so."""
        return int(self.read_metrics()[f'kontext_edits_total{{model="kontext_stream",outcome="{outcome}"}}'])

    def process_restarts(self) -> int:
        """How often the supervisor has started the server again."""
        return int(json.loads(send(f"{self.health}/ready")[1])["restarts"])

    def grpc_process(self, *words: str) -> subprocess.Popen[str]:
        """grpc_calls.py in the server's environment, which has the gRPC client, with the repository's own runtime."""
        return subprocess.Popen(
            [str(self.environment / "bin/python"), str(GRPC_CALLS), self.grpc, *words],
            env={**os.environ, "PYTHONPATH": str(self.models / "kontext_stream" / "1")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call_grpc(self, *words: str) -> dict[str, Any]:
        """What grpc_calls.py prints."""
        process = self.grpc_process(*words)
        try:
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, errors
        result: dict[str, Any] = json.loads(output)
        return result


@pytest.fixture(scope="session")
def server(server_environment: Path, tiny_bundle: Path, server_folder: Path) -> Iterator[Served]:
    from kontext.export.cli.main import main

    filters, repository = server_folder / "my_filters.py", server_folder / "repository"
    # Of a copy: the repository links to the bundle's files, and onnx refuses to read files with several links.
    bundle = shutil.copytree(tiny_bundle, server_folder / "bundle")
    filters.write_text(FILTERS)
    arguments = [str(bundle), "--triton", str(repository), "--triton-filters", str(filters), "--quiet"]
    assert main(arguments) == 0
    config = repository / "models" / "kontext_stream" / "config.pbtxt"
    decoding = '"max_decode_seconds" value { string_value: "%s" }'
    config.write_text(config.read_text().replace(decoding % 10, decoding % 1))
    with Served(repository / "models", log=server_folder / "log") as running:
        yield running


class Front:
    """nginx in front of a server, as a repository's front/start.sh starts it; a context."""

    def __init__(self, repository: Path, server: LocalServer, folder: Path, **settings: str) -> None:
        (port,) = free_ports(1)
        self.http = f"http://127.0.0.1:{port}"
        self.log = folder / "front.log"
        self.environment = {
            **os.environ,
            "SERVER": server.http.removeprefix("http://"),
            "HEALTH": server.health.removeprefix("http://"),
            "LISTEN": f"127.0.0.1:{port}",
            "STATE": str(folder / "front"),
            "TLS": str(folder / "tls"),
            "WORKERS": "root",  # if root runs the tests: the folders of pytest are closed to others
            "REQUESTS": "10000",
            "BURST": "10000",
            "EDITS": "500",
            **settings,
        }
        self.start = str(repository / "front" / "start.sh")

    def __enter__(self) -> Front:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(["sh", self.start], env=self.environment, stdout=log, stderr=log)
        port = int(self.http.rpartition(":")[2])

        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="session")
def front(server: Served, server_folder: Path) -> Iterator[Front]:
    """The front of the shared server; skips where nginx or its Lua module is missing."""
    if shutil.which("nginx") is None or not list(Path("/etc/nginx/modules-enabled").glob("*lua*")):
        pytest.skip("nginx with Lua is not there: Debian's packages nginx-light and libnginx-mod-http-lua")
    with Front(server.models.parent, server, server_folder) as running:
        yield running


@pytest.fixture(scope="session")
def local(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, device="cpu")


@pytest.fixture(scope="session")
def pictures(server_folder: Path) -> list[Path]:
    """A PNG, and a JPEG of another shape."""
    paths = [server_folder / "in.png", server_folder / "in.jpg"]
    Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(paths[0])
    Image.effect_mandelbrot((176, 96), (-2, -1, 1, 1), 50).convert("RGB").save(paths[1])
    return paths


def until(true: Any, seconds: float = 120) -> None:
    """Waits for it: the server's counters follow what it does a moment later."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
