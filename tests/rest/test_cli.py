"""Starting and ending `kontext-serve`: what is refused in one line, and what a signal does to edits."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kontext.rest.cli import main

from .conftest import Served, form, png


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on stderr of a command that exits with 2."""
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_what_cannot_be_served(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> None:
    assert "name either a BUNDLE or an --upstream" in refusal(capsys)
    assert "name either" in refusal(capsys, tiny_bundle, "--upstream", "http://127.0.0.1:1")
    assert "does not exist" in refusal(capsys, tmp_path / "none", "--port", 0)
    assert "--port must be from 0 to 65535" in refusal(capsys, tiny_bundle, "--port", 70000)
    assert "is no address of this machine" in refusal(capsys, tiny_bundle, "--host", "192.0.2.1")
    assert "--host 0.0.0.0 lets other machines in" in refusal(
        capsys, tiny_bundle, "--host", "0.0.0.0", "--port", 0
    )
    assert "--limit max_stepz=2: NAME must be" in refusal(capsys, tiny_bundle, "--limit", "max_stepz=2")
    assert "--grace must be" in refusal(capsys, tiny_bundle, "--grace", -1)
    assert "--device has no effect with --upstream" in refusal(
        capsys, "--upstream", "http://127.0.0.1:1", "--device", "cpu"
    )
    assert "is not a server's URL" in refusal(capsys, "--upstream", "ftp://x", "--port", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} is in use" in refusal(capsys, tiny_bundle, "--port", port)


def test_a_bundle_that_does_not_edit(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    """Damage that loading does not see ends the command at the first edit."""
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    (graph,) = broken.glob("**/vae_decoder.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    assert "vae_decoder.onnx" in refusal(capsys, broken, "--device", "cpu", "--port", 0)


def test_filters(
    serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "filters.py"
    for text, words in (
        ("1 / 0", "ZeroDivisionError"),
        ("input_filter = print", "defines no output_filter"),
    ):
        file.write_text(text)
        assert words in refusal(capsys, tiny_bundle, "--port", 0, "--filters", file)
    file.write_text(
        "from kontext.errors import KontextError\n"
        "def input_filter(references, prompt):\n"
        "    if 'forbidden' in prompt: raise KontextError('not here')\n"
        "def output_filter(picture): return picture\n"
    )
    filtered = serve("--filters", file).ready()
    body, header = form({"prompt": "forbidden"}, [("image", png())])
    status, answer, _ = filtered.send("POST", "/v1/images/edits", body, header)
    assert (status, answer["error"]["code"]) == (400, "content_policy_violation")
    assert answer["error"]["message"] == "not here"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_lets_edits_finish(serve: Callable[..., Served], number: signal.Signals) -> None:
    server = serve().ready()
    answers, thread = begin(server, steps=60)
    server.process.send_signal(number)
    thread.join()
    assert answers == [200]
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log.read_text()


def test_a_signal_cancels_what_takes_too_long(serve: Callable[..., Served]) -> None:
    server = serve("--grace", 0).ready()
    answers, thread = begin(server, steps=200)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers == [503]
    assert server.process.wait(60) == 0
    server = serve().ready()
    _, thread = begin(server, steps=200)
    server.process.send_signal(signal.SIGTERM)
    server.until(lambda: "again to end at once" in server.log.read_text())
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 143
    thread.join()


def begin(server: Served, steps: int) -> tuple[list[Any], threading.Thread]:
    """An edit that is running, and where its status comes."""
    answers: list[Any] = []
    body, header = form({"prompt": "x", "steps": steps}, [("image", png())])

    def call() -> None:
        try:
            answers.append(server.send("POST", "/v1/images/edits", body, header)[0])
        except OSError as error:
            answers.append(error)

    before = server.metric("kontext_steps_total")
    thread = threading.Thread(target=call)
    thread.start()
    server.until(lambda: server.metric("kontext_steps_total") > before)
    return answers, thread


def test_keys_that_are_none(capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for data, words in (
        (b"", "has no API keys"),
        (b"# only this\n", "has no API keys"),
        (b"short\n", "line 1: a key has 16 or more"),
        (b"\n0123456789 0123456789\n", "line 2: a key has"),
        ("ключ-ключ-ключ-ключ".encode(), "a key has 16"),
        (b"\xff\xfe", "is not text in UTF-8"),
    ):
        file.write_bytes(data)
        said = refusal(capsys, tiny_bundle, "--api-keys", file)
        assert words in said
        assert "0123456789" not in said
    assert "keys" in refusal(capsys, tiny_bundle, "--api-keys", tmp_path / "no-keys")
