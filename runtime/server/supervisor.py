"""Runs the server and starts it again when one of its model processes is dead or does not answer.

NVIDIA Triton Inference Server goes on saying that it is ready when a model's process has died (seen in 2.51), so the
image, the compose file and the local server start it through this one, and probes ask it. It needs the standard library
only and is run as a file, so that no package and no folder of a user can get in its way:

    python3 -I supervisor.py --port 8003 --http 127.0.0.1:8000 -- tritonserver --model-repository=models …

`GET /ready` on its port is 200 while the server answers edits, `GET /live` until the server cannot be helped by
restarts. Exit codes: the server's own when it was stopped or never became ready, 1 after restarts that did not help.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WATCH_SECONDS = 0.25
"""Between two looks at the model processes."""

PROBE_SECONDS = 2.0
"""Between two requests to the models."""

PATH_FLAGS = ("-repository", "-store", "-directory", "-file", "-cert", "-key")
"""Ends of the server's flags that take a path."""

PROBE_TIMEOUT = 10.0
MOST_FAILED_PROBES = 3
GRACE_SECONDS = 1.5
"""From the death of a model process to the end of its server, which uses them to answer the requests in flight."""

QUIET_SECONDS = 30.0
"""A restart has helped when the server was ready for so long."""

MOST_RESTARTS = 5
"""Restarts in a row that did not help, before the supervisor gives up."""

STUB = "triton_python_b"
"""How the kernel names the Python backend's processes (15 characters)."""

CLOSED = "shared-memory,model-repository,trace,logging"
"""Parts of the server's interface that change it or reach its memory. They need a key that nobody has."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="supervisor.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1", help="where /ready and /live are served")
    parser.add_argument("--port", type=int, default=8003)
    parser.add_argument("--http", default="127.0.0.1:8000", help="where the server listens for HTTP")
    parser.add_argument("--model", help="asked whether it works; without it, only the server is")
    parser.add_argument("--shared-memory", default="kontext-server-", help="first part of its files' names")
    parser.add_argument("--start-seconds", type=float, default=1200, help="after which it cannot start")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the server and its flags, after --")
    options = parser.parse_args(arguments)
    shared = f"{options.shared_memory}{secrets.token_hex(4)}-"
    region = f"--backend-config=python,shm-region-prefix-name={shared}"
    command = [*absolute_paths(options.command), *closed_flags(), region]
    adopt_orphans()
    supervisor = Supervisor(command, options.http, options.model, shared, options.start_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    with serve_health(supervisor, options.address, options.port):
        return supervisor.run()


def closed_flags() -> list[str]:
    """Flags that close `CLOSED` over HTTP and gRPC by a random key."""
    key = f"kontext-admin={secrets.token_hex(16)}"
    return [f"--http-restricted-api={CLOSED}:{key}", f"--grpc-restricted-protocol={CLOSED}:{key}"]


class Supervisor:
    """One server after another, until `stop` or until restarts do not help."""

    def __init__(
        self, command: Sequence[str], http: str, model: str | None, shared_memory: str, start_seconds: float
    ) -> None:
        self.command = command
        self.host, _, port = http.rpartition(":")
        self.port = int(port)
        self.model = model
        self.shared_memory = shared_memory
        self.start_seconds = start_seconds
        self.stopping = threading.Event()
        self.server: subprocess.Popen[bytes] | None = None
        self.problem = "starting"
        """Why the server is not ready; empty while it is."""
        self.restarts = 0

    def stop(self) -> None:
        """Asks for the end, as a SIGTERM does: the server finishes the requests in flight first."""
        self.stopping.set()

    def run(self) -> int:
        """Returns the exit code."""
        failures = 0
        while True:
            began = time.monotonic()
            was_ready, self.problem = self.run_server()
            code = self.end_server(GRACE_SECONDS if was_ready else 0)
            if self.stopping.is_set() or (not was_ready and self.restarts == 0):
                return code if code >= 0 else 128 - code
            failures = 1 if was_ready and time.monotonic() - began > QUIET_SECONDS else failures + 1
            if failures > MOST_RESTARTS:
                say(f"{self.problem}; {MOST_RESTARTS} restarts did not help")
                return 1
            self.restarts += 1
            say(f"{self.problem}; restart {self.restarts}")

    def run_server(self) -> tuple[bool, str]:
        """Starts a server and watches it. Returns whether it was ready once, and why it has to end."""
        # In the root folder: the models' processes take Python modules from the folder that they run in first.
        self.server = subprocess.Popen(
            self.command, cwd="/", stdin=subprocess.DEVNULL, preexec_fn=end_with_parent
        )
        deadline, next_probe, failed = time.monotonic() + self.start_seconds, 0.0, 0
        stubs: int | None = None  # when it became ready
        while not self.stopping.wait(WATCH_SECONDS):
            if self.server.poll() is not None:
                return stubs is not None, f"the server ended with exit code {self.server.returncode}"
            if stubs is not None and len(live_stubs(self.server.pid)) < stubs:
                return True, "a model's process died"
            if time.monotonic() < next_probe:
                continue
            fault = self.probe()
            if not fault:
                stubs = len(live_stubs(self.server.pid)) if stubs is None else stubs
                self.problem, failed = "", 0
            elif stubs is None and time.monotonic() > deadline:
                return False, f"the server was not ready after {self.start_seconds:.0f} s"
            elif stubs is not None:
                failed += 1
                if failed == MOST_FAILED_PROBES:
                    return True, f"the models do not answer: {fault}"
            next_probe = time.monotonic() + (0 if stubs is None else PROBE_SECONDS)
        return stubs is not None, "stopping"

    def probe(self) -> str:
        """Why the models do not answer; empty if they do. Costs no edit: `contract.PROBE` says what is asked."""
        asked: list[tuple[str, str, str | None]] = [("GET", "/v2/health/ready", None)]
        if self.model is not None:
            probe = json.dumps({"PROMPT": "", "parameters": {"probe": True}})
            asked.append(("POST", f"/v2/models/{self.model}/generate", probe))
        try:
            for method, path, body in asked:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=PROBE_TIMEOUT)
                with contextlib.closing(connection):
                    connection.request(method, path, body)
                    response = connection.getresponse()
                    said = response.read(4096).decode(errors="replace")
                    if response.status != 200:
                        return f"{path} says {response.status} {said}".strip()
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        return ""

    def end_server(self, grace: float) -> int:
        """Ends the server and all that it started: at the end of its requests if `stop` was called, else after `grace`
        seconds. Returns its exit code."""
        assert self.server is not None
        if self.stopping.is_set():
            self.server.terminate()
            self.server.wait()
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(grace)
            self.server.kill()
        code = self.server.wait()
        end_orphans()
        for left in Path("/dev/shm").glob(f"{self.shared_memory}*"):
            left.unlink(missing_ok=True)
        return code


def adopt_orphans() -> None:
    """Makes this process the parent of whatever its children leave behind (prctl, PR_SET_CHILD_SUBREAPER): model
    processes outlive a server that dies during an edit, each with its networks in memory."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def end_orphans(seconds: float = 10.0) -> None:
    """Kills every process that is left of a server that has ended; waits for those that the kernel holds up so long."""
    deadline = time.monotonic() + seconds
    while (left := children(os.getpid())) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, os.WNOHANG)
        time.sleep(0.01)


def children(process: int) -> list[int]:
    """Processes whose parent is `process`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(stat(folder)[2]) == process:
                found.append(int(folder.name))
    return found


def live_stubs(server: int) -> list[int]:
    """The server's model processes that are not dead (a dead one stays as a zombie until the server takes notice)."""
    alive = []
    for process in children(server):
        with contextlib.suppress(OSError, IndexError):
            name, state = stat(Path("/proc") / str(process))[:2]
            if name == STUB and state not in "ZX":
                alive.append(process)
    return alive


def stat(folder: Path) -> list[str]:
    """Name, state, parent and so on of a process, from its folder in /proc. The name may have spaces and brackets."""
    text = (folder / "stat").read_text(errors="replace")
    end = text.rindex(")")
    return [text[text.index("(") + 1 : end], *text[end + 1 :].split()]


def absolute_paths(command: Sequence[str]) -> list[str]:
    """The command with its paths from here made absolute, for a process that runs in another folder."""
    words = []
    for before, word in zip(["", *command], command, strict=False):
        flag, equals, value = word.partition("=")
        if equals and flag.endswith(PATH_FLAGS) and "://" not in value:
            word = f"{flag}={Path(value).absolute()}"
        elif (before.endswith(PATH_FLAGS) and "://" not in word) or (not before and "/" in word):
            word = str(Path(word).absolute())
        words.append(word)
    return words


def end_with_parent() -> None:
    """In the child: the kernel ends it when this process dies, even by SIGKILL (prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextlib.contextmanager
def serve_health(supervisor: Supervisor, address: str, port: int) -> Iterator[None]:
    """/ready and /live, in threads, inside this context."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # of a caller that sends nothing

        def do_GET(self) -> None:
            problem = {"/ready": supervisor.problem, "/live": ""}.get(self.path)
            body = json.dumps({"problem": problem, "restarts": supervisor.restarts}).encode()
            self.send_response(404 if problem is None else 503 if problem else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...  # a caller went away

    with Server((address, port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def say(line: str) -> None:
    print(f"supervisor: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
