"""Edits over REST as the benchmark sends them, to a server that answers from memory, and servers that do not start."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from kontext.bench.serving.rest_client import HEADERS, RestClient, form, rest_server
from kontext.errors import KontextError
from kontext.runtime.server_client import Edit


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 8), "green").save(file, "PNG")
    return file.getvalue()


class Fake(http.server.BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, bytes]]
    sent: ClassVar[list[bytes]]

    def do_POST(self) -> None:
        Fake.sent.append(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = Fake.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Fake.sent = []
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_edit_and_its_answer(url: str) -> None:
    picture = base64.b64encode(png()).decode()
    answer = {"data": [{"b64_json": picture, "seed": 3}], "warnings": ["a warning"]}
    Fake.answer = 200, json.dumps(answer).encode()
    edit = Edit("make it red", [png(), b"another"], 4, seed=3, size=(64, 32))
    made = RestClient(url).edit(edit)
    assert made.picture.size == (16, 8)
    assert made.warnings == ("a warning",)
    assert Fake.sent == [form(edit)]
    head = f"Content-Type: {HEADERS['Content-Type']}\r\n\r\n".encode()
    parts = BytesParser().parsebytes(head + form(edit)).get_payload()
    assert isinstance(parts, list)
    found = [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True))
        for part in parts
    ]  # type: ignore[union-attr]
    assert found == [
        ("prompt", b"make it red"),
        ("seed", b"3"),
        ("response_format", b"b64_json"),
        ("steps", b"4"),
        ("size", b"64x32"),
        ("image[]", png()),
        ("image[]", b"another"),
    ]


def test_a_fault_is_an_error(url: str) -> None:
    Fake.answer = 400, b'{"error": "no"}'
    with pytest.raises(KontextError, match=r'kontext-serve says 400: \{"error": "no"\}'):
        RestClient(url).edit(Edit("x"))
    with pytest.raises(KontextError, match=r"kontext-serve does not answer: .*refused"):
        RestClient("http://127.0.0.1:9").edit(Edit("x"))


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    with pytest.raises(KontextError, match=r"kontext-serve did not start: .*is not a bundle"):
        with rest_server([str(tmp_path), "--device", "cpu"]):
            pass
