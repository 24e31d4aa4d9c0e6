"""The server from a wheel: what is asked of its environment, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.bench import local_server
from kontext.bench.local_server import LocalServer
from kontext.errors import KontextError

ROOT = Path(__file__).resolve().parents[2]


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if "==" in line]
    return dict(line.split("==") for line in lines)


def test_what_pictures_are_made_with_is_what_they_are_compared_with() -> None:
    here, there = pins(ROOT / "constraints.txt"), pins(ROOT / "constraints-serve.txt")
    for name in ("onnxruntime", "pillow", "safetensors", "tokenizers", "tqdm"):
        assert there[name] == here[name]
    assert there["numpy"].startswith("1.")  # the server's Python backend cannot read numpy 2


def test_an_environment_is_what_its_requirements_say(tmp_path: Path) -> None:
    requirements, environment = tmp_path / "requirements.txt", tmp_path / "environment"
    requirements.write_text("a==1\n")
    assert not local_server.is_ready(environment, requirements)
    environment.mkdir()
    (environment / local_server.STAMP).write_text(local_server.digest(requirements))
    assert local_server.is_ready(environment, requirements)
    requirements.write_text("a==2\n")
    assert not local_server.is_ready(environment, requirements)


def test_free_ports_are_different() -> None:
    assert len(set(local_server.free_ports(3))) == 3


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    if not local_server.is_ready():
        pytest.skip("the server's environment is not there: `make server` makes build/server")
    server = LocalServer(tmp_path / "nowhere", log=tmp_path / "log")
    with pytest.raises(KontextError, match=r"the server did not start: .*nowhere"), server:
        pass
    assert server.process is None
    assert not server.scratch.exists()


def test_a_bundle_is_served_only_where_there_is_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "is_ready", lambda: False)
    with pytest.raises(KontextError, match="`make server` makes it"):
        with local_server.connected(str(tmp_path)):
            pass


def test_only_a_repository_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_server, "make_environment", lambda: None)
    assert local_server.main([str(tmp_path)]) == 2
    assert "it has no models/" in capsys.readouterr().err
