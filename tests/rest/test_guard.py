"""Callers who mean no good: without keys, from other sites, with endless, slow or faulty bodies."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .conftest import KEY, Served, form, png


@pytest.fixture(scope="module")
def locked(serve: Callable[..., Served], rest_folder: Path) -> Served:
    """A server with keys, for other machines too."""
    keys = rest_folder / "keys"
    keys.write_text(f"# of the tests\nanother-key-0123456789\n\n{KEY}\n")
    return serve("--api-keys", keys, "--host", "0.0.0.0").ready()


def test_keys(locked: Served) -> None:
    body, header = form({"prompt": "x", "steps": 1}, [("image", png())])
    for sent, status in (
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer \xff\xfe", 401),
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("Bearer another-key-0123456789", 200),
    ):
        headers = header if sent is None else {**header, "Authorization": sent}
        found, answer, more = locked.send("POST", "/v1/images/edits", body, headers)
        assert found == status, sent
        if status == 401:
            assert answer["error"]["code"] == "invalid_api_key"
            assert more["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/metrics"):
        assert locked.send("GET", path)[0] == 401
    for path in ("/", "/health/live", "/health/ready", "/openapi.json"):
        assert locked.send("GET", path)[0] == 200
    assert KEY not in locked.log.read_text()


def test_other_sites_and_names(rest: Served, locked: Served) -> None:
    body, header = form({"prompt": "x", "steps": 1}, [("image", png())])
    evil = {**header, "Origin": "http://evil.example"}
    for server, key in ((rest, {}), (locked, {"Authorization": f"Bearer {KEY}"})):
        status, answer, _ = server.send("POST", "/v1/images/edits", body, {**evil, **key})
        assert (status, answer["error"]["code"]) == (403, "wrong_origin")
    own = {**header, "Origin": rest.url}
    assert rest.send("POST", "/v1/images/edits", body, own)[0] == 200
    status, answer, _ = rest.send("GET", "/v1/models", None, {"Host": "evil.example"})
    assert (status, answer["error"]["code"]) == (403, "wrong_host")
    assert rest.send("GET", "/v1/models", None, {"Host": "localhost:1"})[0] == 200
    assert locked.send("GET", "/health/ready", None, {"Host": "kontext.example"})[0] == 200


def request_head(rest: Served, *lines: str) -> bytes:
    head = ["POST /v1/images/edits HTTP/1.1", f"Host: {urlsplit(rest.url).netloc}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n"


def answer_to(rest: Served, head: bytes, chunks: Iterator[bytes]) -> bytes:
    """What comes back while this is sent, until the connection ends."""
    url = urlsplit(rest.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=60) as connection:
        answer = b""
        try:
            connection.sendall(head)
            for chunk in chunks:
                connection.sendall(chunk)
            while piece := connection.recv(65536):
                answer += piece
        except (BrokenPipeError, ConnectionResetError):
            connection.settimeout(5)
            try:
                while piece := connection.recv(65536):
                    answer += piece
            except OSError:
                pass
        return answer


MULTIPART = "Content-Type: multipart/form-data; boundary=frontier"


def test_bombs_cost_their_own_request_only(rest: Served) -> None:
    many = form({f"field-{i}": "x" for i in range(5000)})[0]
    large = form({"prompt": "x" * (4 << 20)})[0]
    files = form({}, [(f"image{i}", b"x") for i in range(3000)])[0]
    heads = b"--frontier\r\n" + b"X-Header: y\r\n" * 200_000
    for body in (many, large, files, heads, b"--frontier" * 500_000):
        status, answer, _ = rest.send(
            "POST",
            "/v1/images/edits",
            body,
            {"Content-Type": "multipart/form-data; boundary=frontier"},
        )
        assert status == 400, (body[:60], answer)
    assert rest.send("GET", "/health/ready")[0] == 200


def test_an_endless_body_is_cut(rest: Served) -> None:
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    part = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield b"%x\r\n%s\r\n" % (len(part), part)
        for _ in range(2000):
            yield chunk
        raise AssertionError("2 GB were taken")

    answer = answer_to(rest, request_head(rest, MULTIPART, "Transfer-Encoding: chunked"), endless())
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""  # a reset may overtake the answer
    declared = request_head(rest, MULTIPART, f"Content-Length: {1 << 40}")
    answer = answer_to(rest, declared, iter([part]))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"too_large"' in answer


@pytest.fixture
def hasty(tiny_bundle: Path, rest_folder: Path) -> Iterator[Served]:
    """A server whose patience is a second."""
    code = (
        "from kontext.rest import cli, guard, listening\n"
        "guard.SILENCE_SECONDS = listening.HEADER_SECONDS = 1\n"
        "guard.BODY_SECONDS = 3\n"
        "raise SystemExit(cli.main())"
    )
    with Served(tiny_bundle, "--device", "cpu", log=rest_folder / "hasty", code=code) as running:
        yield running.ready()


def test_slow_callers_are_left(hasty: Served) -> None:
    """Silent connections, headers and bodies by the byte; others are answered meanwhile."""
    url = urlsplit(hasty.url)
    silent = [socket.create_connection((url.hostname or "", url.port or 0)) for _ in range(20)]
    head = request_head(hasty, MULTIPART, "Content-Length: 1000")

    def drip(data: bytes) -> Iterator[bytes]:
        for byte in data:
            yield bytes([byte])
            time.sleep(0.1)

    began = time.monotonic()
    assert answer_to(hasty, b"", drip(head + bytes(200))) == b""
    assert b"HTTP/1.1 408" in answer_to(hasty, head, iter([b"--fr"]))
    assert b"HTTP/1.1 408" in answer_to(hasty, head, drip(b"--frontier\r\nX: " + b"y" * 200))
    assert time.monotonic() - began < 60
    for connection in silent:
        connection.settimeout(10)
        assert connection.recv(1) == b""
        connection.close()
    assert hasty.send("GET", "/health/ready")[0] == 200
