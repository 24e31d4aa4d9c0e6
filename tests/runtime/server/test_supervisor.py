"""The supervisor over small programs, and over a real server whose model processes are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kontext.bench.serving.local_server import free_ports
from kontext.runtime import Pipeline
from kontext.runtime.server import contract, supervisor
from kontext.runtime.server_client import Edit, connect

from ..conftest import until

SERVER = """
import http.server, os, sys, time
port, starts = int(sys.argv[1]), sys.argv[2]
open(starts, "a").write("start\\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = not os.path.exists(starts + ".sick")
        self.send_response(200 if ready else 503)
        self.end_headers()
    do_POST = do_GET
    def log_message(self, *_): pass
if os.path.exists(starts + ".broken"):
    sys.exit(3)
if os.fork() == 0:
    os.fork()
    open(starts + ".family", "a").write(f"{os.getpid()} ")
    time.sleep(600)
    os._exit(0)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
"""Stands for the server: ready at once, not ready while a file `.sick` is there, ends at once beside `.broken`. Starts
two processes, one of the other, which `.family` lists."""


class Supervised:
    def __init__(self, folder: Path) -> None:
        self.starts = folder / "starts"
        (folder / "server.py").write_text(SERVER)
        http, self.port = free_ports(2)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", supervisor.__file__, f"--port={self.port}"),
                *(f"--http=127.0.0.1:{http}", "--"),
                *(sys.executable, str(folder / "server.py"), str(http), str(self.starts)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as fault:
            return fault.code, json.loads(fault.read())
        except OSError:
            return 0, None

    def ready(self) -> bool:
        return self.get("/ready")[0] == 200

    def server(self) -> int:
        (process,) = supervisor.children(self.process.pid)
        return process


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    running = Supervised(tmp_path)
    yield running
    running.process.terminate()
    running.process.communicate()


def test_a_dead_server_is_started_again(supervised: Supervised) -> None:
    until(supervised.ready)
    os.kill(supervised.server(), signal.SIGKILL)
    until(lambda: supervised.get("/ready") == (200, {"problem": "", "restarts": 1}))
    assert supervised.starts.read_text() == "start\n" * 2
    assert supervised.get("/live")[0] == 200
    assert supervised.get("/other")[0] == 404


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_server(supervised: Supervised, number: int) -> None:
    """Not what it started, and not what that started, whoever ends."""
    until(supervised.ready)
    listed = supervised.starts.with_name("starts.family")
    until(lambda: listed.is_file() and len(listed.read_text().split()) == 2)
    family = [int(process) for process in listed.read_text().split()]
    assert all(Path(f"/proc/{process}").exists() for process in family)
    os.kill(supervised.server() if number == signal.SIGKILL else supervised.process.pid, number)
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in family))


def test_a_server_that_does_not_answer_is_not_ready_and_is_started_again(supervised: Supervised) -> None:
    until(supervised.ready)
    sick = supervised.starts.with_name("starts.sick")
    sick.touch()
    until(lambda: supervised.get("/ready")[0] == 503)
    sick.unlink()
    until(supervised.ready)
    assert supervised.starts.read_text() == "start\n" * 2


def test_restarts_that_do_not_help_end(supervised: Supervised) -> None:
    until(supervised.ready)
    supervised.starts.with_name("starts.broken").touch()
    os.kill(supervised.server(), signal.SIGKILL)
    _, errors = supervised.process.communicate(timeout=60)
    assert supervised.process.returncode == 1
    assert "the server ended with exit code 3; 5 restarts did not help" in errors.splitlines()[-1]


def test_a_server_that_never_starts_is_not_started_again(tmp_path: Path) -> None:
    tmp_path.joinpath("starts.broken").touch()
    broken = Supervised(tmp_path)
    broken.process.communicate(timeout=60)
    assert broken.process.returncode == 3
    assert broken.starts.read_text() == "start\n"


def test_stopping_stops_the_server(supervised: Supervised) -> None:
    until(supervised.ready)
    server = supervised.server()
    supervised.process.terminate()
    assert supervised.process.wait(60) == 128 + signal.SIGTERM  # of this server, which has no handler
    assert not Path(f"/proc/{server}").exists()


def test_the_server_runs_where_nobody_leaves_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And still finds what its command names from here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "json.py").touch()
    for words, expected in (
        (
            ["tritonserver", "--model-repository=models"],
            ["tritonserver", f"--model-repository={tmp_path}/models"],
        ),
        (
            ["bin/server", "--model-repository", "."],
            [f"{tmp_path}/bin/server", "--model-repository", str(tmp_path)],
        ),
        (["models", "--log-verbose=1", "--id", "models"], ["models", "--log-verbose=1", "--id", "models"]),
        (["/usr/bin/env", "--model-repository=s3://a"], ["/usr/bin/env", "--model-repository=s3://a"]),
    ):
        assert supervisor.absolute_paths(words) == expected
    where = tmp_path / "where"
    code = f"import os; open({str(where)!r}, 'w').write(os.getcwd())"
    words = [sys.executable, "-I", supervisor.__file__, "--port=0", "--", sys.executable, "-c", code]
    assert subprocess.run(words, timeout=60).returncode == 0
    assert where.read_text() == "/"


def test_a_zombie_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        until(lambda: supervisor.stat(Path(f"/proc/{child.pid}"))[1] == "Z")
        assert child.pid in supervisor.children(os.getpid())
        name = supervisor.stat(Path(f"/proc/{child.pid}"))[0]
        monkeypatch.setattr(supervisor, "STUB", name)
        assert child.pid not in supervisor.live_stubs(os.getpid())
    finally:
        child.wait()


# -- a real server --


def health(server: Any) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{server.health}/ready", timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as fault:
        found = json.loads(fault.read())
    return found


def stub(server: Any, model: str) -> int:
    """The process of a model."""
    (tritonserver,) = supervisor.children(server.process.pid)
    for process in supervisor.live_stubs(tritonserver):
        if f"/{model}/1/model.py" in Path(f"/proc/{process}/cmdline").read_text():
            return process
    raise AssertionError(f"{model} has no process")


@pytest.mark.parametrize("model", ["kontext", "kontext_stream"])
def test_a_killed_model_comes_back(server: Any, local: Pipeline, model: str) -> None:
    """A caller whose edit was running gets its picture, from the next server."""
    expected = np.asarray(local.edit(None, "a red circle", steps=60, seed=4))
    client, started, answers = connect(server.http), threading.Event(), []

    def call() -> None:
        asked = Edit("a red circle", steps=60, seed=4)
        answers.append(client.edit(asked, lambda step, total: started.set()))

    restarts = health(server)["restarts"]
    caller = threading.Thread(target=call)
    caller.start()
    assert started.wait(60)
    os.kill(stub(server, model), signal.SIGKILL)
    until(lambda: health(server)["restarts"] > restarts or health(server)["problem"])
    until(lambda: health(server) == {"problem": "", "restarts": restarts + 1})
    status, _ = server.post("models/kontext/generate", {"PROMPT": "x", "STEPS": 1})
    assert status == 200
    caller.join(120)
    assert np.array_equal(np.asarray(answers[0].picture), expected)


def test_a_server_that_one_request_ended_comes_back(server: Any) -> None:
    """Deep JSON, sent past the front: this server (2.51) ends with SIGSEGV."""
    restarts = server.process_restarts()
    with pytest.raises(OSError):
        server.post("models/kontext/infer", b"[" * 200000)
    until(lambda: health(server) == {"problem": "", "restarts": restarts + 1})


def test_a_server_killed_during_an_edit_leaves_no_process(server: Any, local: Pipeline) -> None:
    restarts, started, answers = health(server)["restarts"], threading.Event(), []
    (tritonserver,) = supervisor.children(server.process.pid)
    stubs = supervisor.live_stubs(tritonserver)
    asked, client = Edit("a red circle", steps=60, seed=4), connect(server.http)
    caller = threading.Thread(target=lambda: answers.append(client.edit(asked, lambda *_: started.set())))
    caller.start()
    assert started.wait(60)
    os.kill(tritonserver, signal.SIGKILL)
    until(lambda: health(server) == {"problem": "", "restarts": restarts + 1})
    assert stubs
    assert not any(Path(f"/proc/{process}").exists() for process in stubs)
    caller.join(120)
    expected = local.edit(None, "a red circle", steps=60, seed=4)
    assert np.array_equal(np.asarray(answers[0].picture), np.asarray(expected))


@pytest.mark.parametrize("model", ["kontext", "kontext_stream"])
def test_an_id_that_is_no_text_fails_alone(server: Any, local: Pipeline, model: str) -> None:
    """Sent past the front, in one batch with an edit that is none the worse for it."""
    restarts = server.process_restarts()
    bad: list[tuple[int, bytes]] = []
    path, body = f"models/{model}/generate", b'{"PROMPT":"x","STEPS":1,"id":"\xff"}'
    callers = [threading.Thread(target=lambda: bad.append(server.post(path, body))) for _ in range(8)]
    for caller in callers:
        caller.start()
    answer = connect(server.http).edit(Edit("a red circle", steps=2, seed=4))
    for caller in callers:
        caller.join(60)
    assert {(status, json.loads(said)["error"]) for status, said in bad} == {(400, contract.UNREADABLE)}
    expected = np.asarray(local.edit(None, "a red circle", steps=2, seed=4))
    assert np.array_equal(np.asarray(answer.picture), expected)
    assert server.process_restarts() == restarts


def test_what_changes_the_server_is_closed(server: Any) -> None:
    region = {"key": "/anything", "offset": 0, "byte_size": 64}
    for path, body in (
        ("systemsharedmemory/region/anything/register", region),
        ("repository/index", {}),
        ("repository/models/kontext/unload", {}),
        ("logging", {"log_verbose_level": 9}),
        ("trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ):
        status, answer = server.post(path, body)
        assert (status, b"restricted" in answer) == (403, True), path
