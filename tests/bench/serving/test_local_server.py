"""The server on this machine: its ports, its errors, and the command that runs it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kontext.bench import cli
from kontext.bench.serving import local_server
from kontext.bench.serving.environment import is_ready
from kontext.bench.serving.local_server import LocalServer
from kontext.errors import KontextError


def test_free_ports_are_different() -> None:
    assert len(set(local_server.free_ports(3))) == 3


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    if not is_ready():
        pytest.skip("no server is installed: `make server` makes build/server")
    server = LocalServer(tmp_path / "nowhere", log=tmp_path / "log")
    with pytest.raises(KontextError, match=r"the server did not start: .*nowhere"), server:
        pass
    assert server.process is None
    assert not server.scratch.exists()


def test_sigterm_stops_what_serve_has_started(tmp_path: Path) -> None:
    """As a container's engine or a scheduler ends it."""
    if not is_ready():
        pytest.skip("no server is installed: `make server` makes build/server")
    (tmp_path / "models").mkdir()
    port = next(port for port in range(20_000, 60_000, 4) if all_free(range(port, port + 4)))
    words = ["-c", "import sys; from kontext.entry_points import bench; sys.exit(bench())"]
    process = subprocess.Popen(
        [sys.executable, *words, "serve", str(tmp_path), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("serving at ")
    assert list(tmp_path.glob("kontext-server-*"))
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("kontext-*"))
    assert all_free(range(port, port + 4))


def all_free(ports: range) -> bool:
    with contextlib.suppress(KontextError):
        for port in ports:
            local_server.check_free(port)
        return True
    return False


def test_a_bundle_is_served_only_where_there_is_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "is_ready", lambda: False)
    with pytest.raises(KontextError, match="no server is installed here: run `make server`"):
        with local_server.connected(str(tmp_path)):
            pass


def test_only_a_repository_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_server, "make_environment", lambda: None)
    assert cli.main(["serve", str(tmp_path)]) == 2
    assert "has no models/" in capsys.readouterr().err


def test_ports_that_are_taken_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_server, "make_environment", lambda: pytest.fail("it went on"))
    (tmp_path / "models").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(tmp_path), "--port", str(port - 1)]) == 2
    assert f"port {port}: Address already in use; --port chooses others" in capsys.readouterr().err
    assert cli.main(["serve", str(tmp_path), "--port", "65534"]) == 2
    assert "--port must be from 1 to 65532" in capsys.readouterr().err


def test_the_server_listens_where_it_is_told(tmp_path: Path) -> None:
    if not is_ready():
        pytest.skip("no server is installed: `make server` makes build/server")
    (tmp_path / "models").mkdir()
    ports = local_server.free_ports(len(local_server.PORTS))
    with LocalServer(tmp_path / "models", ports=ports) as server:
        assert server.http == f"http://127.0.0.1:{ports[0]}"
        assert server.grpc == f"grpc://127.0.0.1:{ports[1]}"
