"""NVIDIA Triton Inference Server on this machine, without a container: its binary and Python backend come from a wheel.

`make server` builds the environment; the tests and `kontext-bench serving BUNDLE` start servers in it, on the loopback
interface and on free ports. Linux only, as the wheel is.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ..errors import KontextError
from ..runtime.server_client import Client, connect
from .command_line import exit_code

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "build" / "server"
REQUIREMENTS = ROOT / "constraints-serve.txt"
STAMP = "requirements.sha256"
START_SECONDS = 120
STOP_SECONDS = 20


def is_ready(environment: Path = ENVIRONMENT, requirements: Path = REQUIREMENTS) -> bool:
    """Whether `environment` holds what `requirements` says."""
    stamp = environment / STAMP
    return stamp.is_file() and requirements.is_file() and stamp.read_text() == digest(requirements)


def digest(requirements: Path) -> str:
    return hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()


def make_environment(environment: Path = ENVIRONMENT, requirements: Path = REQUIREMENTS) -> None:
    """Makes `environment` by pip, unless it is there; about 400 MB and half a minute.

    Raises:
        KontextError: pip could not; the message is its last line.
    """
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_name(environment.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(environment, requirements):
            return
        venv.create(environment, clear=True, with_pip=True)
        pip = [str(environment / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "-qq"]
        done = subprocess.run(
            [*pip, "--no-deps", "-r", str(requirements)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise KontextError(f"the server's environment cannot be made: {last}")
        backends = environment / "backends" / "python"
        wheel = packages(environment) / "pytriton" / "tritonserver"
        shutil.copytree(wheel / "backends" / "python", backends)
        stub = (
            wheel / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / "triton_python_backend_stub"
        )
        if not stub.exists():
            raise KontextError(f"the server's wheel has no Python backend for Python {stub.parent.name}")
        shutil.copy2(stub, backends)
        (environment / STAMP).write_text(digest(requirements))


def packages(environment: Path) -> Path:
    return environment / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"


class LocalServer:
    """A running server; leaving the context ends it and every process that it started.

    Args:
        models: the model repository.
        backends: a folder of backends, for others than the wheel's one.
    """

    def __init__(
        self,
        models: Path,
        *,
        environment: Path = ENVIRONMENT,
        log: Path | None = None,
        backends: Path | None = None,
    ) -> None:
        self.models = models.resolve()
        self.environment = environment
        self.backends = (backends or environment / "backends").resolve()
        self.scratch = Path(tempfile.mkdtemp(prefix="kontext-server-"))
        self.log = self.scratch / "log" if log is None else log.absolute()
        self.http = self.grpc = self.metrics = ""
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalServer:
        """Raises KontextError, with the end of the log, if the server does not come up."""
        try:
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
        ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
        site = packages(self.environment)
        command = [str(site / "pytriton/tritonserver/bin/tritonserver"), f"--model-repository={self.models}"]
        command += [f"--backend-directory={self.backends}", "--allow-gpu-metrics=false"]
        command += [f"--backend-config=python,shm-region-prefix-name={self.scratch.name}"]
        for name, port in ports.items():
            command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
        environment = {
            **os.environ,
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.scratch),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.scratch,  # Python backends look for modules here first
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.http, self.grpc = f"http://127.0.0.1:{ports['http']}", f"grpc://127.0.0.1:{ports['grpc']}"
        self.metrics = f"http://127.0.0.1:{ports['metrics']}/metrics"
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{self.http}/v2/health/ready"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise KontextError(f"the server did not start: {self.last_error()}")
            time.sleep(0.1)

    def last_error(self) -> str:
        """The last line of the log that says what went wrong."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        told = [
            line for line in lines if re.match(r"error: |E\d{4} ", line) and "CudaDriverHelper" not in line
        ]
        ends = [line for line in told if not line.startswith("error: ")] or told or lines
        return " ".join(ends[-1].split()) if ends else "it left no log"

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # whatever of its group is still there
            self.process.wait()
            self.process = None
        for left in Path("/dev/shm").glob(f"{self.scratch.name}*"):
            left.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


@contextlib.contextmanager
def connected(server: str) -> Iterator[tuple[Client, bool]]:
    """The client of a server's URL, or of a server that is started here over the bundle of that name; and which it is.

    Raises:
        KontextError: neither; or there is no environment to start one in.
    """
    if "://" in server:
        yield connect(server), False
        return
    from ..export.server.repository import Settings, write_repository

    if not is_ready():
        raise KontextError("the server's environment is not there: `make server` makes it; or give a URL")
    with tempfile.TemporaryDirectory(dir=ENVIRONMENT) as folder:  # the disk of the bundle, as likely as not
        repository = write_repository(Path(server), Path(folder) / "repository", Settings())
        with LocalServer(repository / "models") as running:
            yield connect(running.http), True


def end_with_parent() -> None:
    """In the child: have the kernel end it when this process dies, even by SIGKILL (prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that were free just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m kontext.bench.local_server [REPO]`: makes the environment, and serves REPO until Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: serve(given))


def serve(given: Sequence[str]) -> None:
    make_environment()
    if not given:
        return
    models = Path(given[0]) / "models"
    if not models.is_dir():
        raise KontextError(
            f"{given[0]} is not what `kontext-export BUNDLE --triton` wrote: it has no models/"
        )
    with LocalServer(models, log=Path("/dev/stderr")) as server:
        print(f"serving at {server.http} and {server.grpc}, metrics at {server.metrics}", flush=True)
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
