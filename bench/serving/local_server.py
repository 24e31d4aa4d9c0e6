"""Runs NVIDIA Triton Inference Server on this machine, on the loopback interface, without a container.

Tests, `kontext-bench serving BUNDLE` and `kontext-bench serve` use it; `environment` installs it. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ...errors import KontextError
from ...runtime.server import contract, supervisor
from ...runtime.server_client import Client, connect
from ...temporary_folder import temporary_folder
from .environment import ENVIRONMENT, is_ready, make_environment, packages

START_SECONDS = 120
STOP_SECONDS = 20

PORT = 8000
"""Of HTTP, as in the server's own defaults; gRPC, metrics and the supervisor's probes take the next three."""

PORTS = ("http", "grpc", "metrics", "health")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "repository",
        type=Path,
        nargs="?",
        metavar="REPOSITORY",
        help="what `kontext-export BUNDLE --triton REPOSITORY` wrote; without it, only install the server",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=PORT,
        help=f"of HTTP; gRPC, metrics and probes take the next three ({PORT})",
    )


def run(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.port <= 65532:
        raise KontextError(f"--port must be from 1 to 65532, not {arguments.port}")
    if arguments.repository is None:
        make_environment()
        print(
            f"the server is installed in {ENVIRONMENT}. Next:\n"
            "  kontext-export BUNDLE --triton my-repository\n  kontext-bench serve my-repository"
        )
        return
    models = arguments.repository / "models"
    if not models.is_dir():
        raise KontextError(
            f"{arguments.repository} has no models/: name a folder that `kontext-export BUNDLE --triton` wrote"
        )
    ports = range(arguments.port, arguments.port + len(PORTS))
    for port in ports:
        check_free(port)
    make_environment()
    with LocalServer(models, log=2, ports=ports) as server:
        print(
            f"serving at {server.http} and {server.grpc}, metrics at {server.metrics}; Ctrl-C stops it. Next:\n"
            f'  kontext-edit --server {server.http} -i in.png --prompt "make the circle red" -o out.png',
            flush=True,
        )
        code = server.wait()
        raise KontextError(f"the server has ended with code {code}: what it printed says why")


class LocalServer:
    """A running server, as a context; leaving it stops the server and every process that the server started.

    Args:
        models: the folder of models.
        environment: where the server is installed.
        log: where its output goes: a file, or an open descriptor; None for a temporary file.
        backends: a folder of backends in place of the environment's Python backend.
        ports: of HTTP, gRPC, metrics and the supervisor's probes; None: any that are free.
    """

    def __init__(
        self,
        models: Path,
        *,
        environment: Path = ENVIRONMENT,
        log: Path | int | None = None,
        backends: Path | None = None,
        ports: Sequence[int] | None = None,
    ) -> None:
        self.ports = ports
        self.models = models.resolve()
        self.environment = environment
        self.backends = (backends or environment / "backends").resolve()
        self.stack = contextlib.ExitStack()
        self.given_log = log
        self.http = self.grpc = self.metrics = self.health = ""
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalServer:
        """Raises KontextError, with the log's last error, if the server does not start."""
        try:
            self.scratch = self.stack.enter_context(temporary_folder("server"))
            self.stack.callback(remove_shared_memory, self.scratch.name)
            self.log = self.given_log.absolute() if isinstance(self.given_log, Path) else self.scratch / "log"
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        numbers = free_ports(len(PORTS)) if self.ports is None else self.ports
        ports = dict(zip(PORTS, numbers, strict=True))
        site = packages(self.environment)
        # As a file and isolated: no package, folder or variable of a user can get in the supervisor's way.
        command = [sys.executable, "-I", str(Path(supervisor.__file__).resolve())]
        command += [f"--port={ports['health']}", f"--http=127.0.0.1:{ports['http']}"]
        if (self.models / contract.UNARY).is_dir():
            command.append(f"--model={contract.UNARY}")
        command += [f"--shared-memory={self.scratch.name}", f"--start-seconds={START_SECONDS}", "--"]
        command += [str(site / "pytriton/tritonserver/bin/tritonserver"), f"--model-repository={self.models}"]
        command += [f"--backend-directory={self.backends}", "--allow-gpu-metrics=false"]
        for name in ("http", "grpc", "metrics"):
            command += [f"--{name}-address=127.0.0.1", f"--{name}-port={ports[name]}"]
        environment = {
            **os.environ,
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.scratch),
        }
        # A descriptor is passed on, not opened again: two positions in one file would overwrite each other.
        with open(os.dup(self.given_log) if isinstance(self.given_log, int) else self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=supervisor.end_with_parent,
            )
        self.http, self.grpc = f"http://127.0.0.1:{ports['http']}", f"grpc://127.0.0.1:{ports['grpc']}"
        self.metrics = f"http://127.0.0.1:{ports['metrics']}/metrics"
        self.health = f"http://127.0.0.1:{ports['health']}"
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{self.health}/ready"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise KontextError(f"the server did not start: {self.last_error()}")
            time.sleep(0.1)

    def wait(self) -> int:
        """Waits until the server ends by itself; its exit code."""
        assert self.process is not None
        return self.process.wait()

    def last_error(self) -> str:
        """The log's last error, else its last line."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        errors = [
            line for line in lines if re.match(r"error: |E\d{4} ", line) and "CudaDriverHelper" not in line
        ]
        best = [line for line in errors if not line.startswith("error: ")] or errors or lines
        return " ".join(best[-1].split()) if best else "it left no log"

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # what is left of its process group
            self.process.wait()
            self.process = None
        self.stack.close()


def remove_shared_memory(prefix: str) -> None:
    """Removes what killed model processes have left."""
    for left in Path("/dev/shm").glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def connected(server: str) -> Iterator[tuple[Client, bool]]:
    """A client, and whether its server runs here: of the server at a URL, or of one started over a bundle's folder.

    Raises:
        KontextError: `server` is neither, or the server is not installed here.
    """
    if "://" in server:
        yield connect(server), False
        return
    with serving(Path(server)) as running:
        yield connect(running.http), True


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[LocalServer]:
    """A server started over a bundle's folder. Raises KontextError if it is none, or no server is installed here."""
    from ...export.server.repository import Settings, write_repository

    if not is_ready():
        raise KontextError("no server is installed here: run `make server`, or give the URL of one")
    with temporary_folder("repository", ENVIRONMENT) as folder:  # likely the bundle's disk: files are linked
        repository = write_repository(bundle, Path(folder) / "repository", Settings())
        with LocalServer(repository / "models") as running:
            yield running


def free_ports(count: int) -> list[int]:
    """Free ports of the loopback interface."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def check_free(port: int) -> None:
    """Raises KontextError if another program listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise KontextError(f"port {port}: {error.strerror}; --port chooses others") from None


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
