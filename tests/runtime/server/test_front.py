"""The front, real nginx, before a real server: what is no edit never reaches the server, and edits are unchanged."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.runtime import Pipeline
from kontext.runtime.sent_pictures import picture_file
from kontext.runtime.server_client import Edit, connect

from ..conftest import Front, send, until


def tensor(name: str, datatype: str, shape: list[Any], data: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype,
        "shape": shape,
        **({} if data is None else {"data": data}),
        **more,
    }


PROMPT = tensor("PROMPT", "BYTES", [1, 1], ["x"])
STEPS = tensor("STEPS", "INT32", [1, 1], [1])
NESTED = b"[" * 200000


def infer(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": [PROMPT, *inputs], **more}).encode()


def in_bytes(
    *, size: int = 5, shape: Any = (1, 1), value: bytes = b"\x01\0\0\0x"
) -> tuple[bytes, dict[str, str]]:
    """PROMPT in the binary form."""
    parameters = {"binary_data_size": size}
    head = json.dumps({"inputs": [tensor("PROMPT", "BYTES", list(shape), parameters=parameters)]}).encode()
    return head + value, {"Inference-Header-Content-Length": str(len(head))}


INFER, GENERATE = "/v2/models/kontext/infer", "/v2/models/kontext/generate"
STREAM = "/v2/models/kontext_stream/generate_stream"
REGION = json.dumps({"key": "/anything", "offset": 0, "byte_size": 64}).encode()

REFUSED: dict[str, tuple[str, bytes, dict[str, str], str]] = {
    "deep JSON": (INFER, NESTED, {}, "nested more than 6 deep"),
    "deep JSON to generate": (GENERATE, NESTED, {}, "nested more than 6 deep"),
    "deep JSON to the stream": (STREAM, NESTED, {}, "nested more than 6 deep"),
    "deep JSON in an object": (GENERATE, b'{"PROMPT": ' + NESTED, {}, "nested more than 6 deep"),
    "deep objects": (INFER, b'{"a":' * 100000, {}, "nested more than 6 deep"),
    "a shape that overflows": (
        INFER,
        infer(tensor("STEPS", "INT32", [1, 2**50], [1])),
        {},
        "not the contract's",
    ),
    "a shape of gigabytes": (
        INFER,
        infer(tensor("STEPS", "INT32", [1, 10**9], [1])),
        {},
        "not the contract's",
    ),
    "a shape below 0": (INFER, infer(tensor("IMAGES", "BYTES", [1, -1], ["x"])), {}, "not the contract's"),
    "a shape that is no number": (
        INFER,
        infer(tensor("STEPS", "INT32", [1, "1"], [1])),
        {},
        "not the contract's",
    ),
    "a fractional shape": (INFER, infer(tensor("STEPS", "INT32", [1, 1.5], [1])), {}, "not the contract's"),
    "a shape of many sides": (
        INFER,
        infer(tensor("STEPS", "INT32", [1] * 200, [1])),
        {},
        "has not two sides",
    ),
    "a batch": (INFER, infer(tensor("STEPS", "INT32", [2**40, 1], [1])), {}, "batch is not 1"),
    "a shape given twice": (
        INFER,
        infer(STEPS).replace(
            b'"shape": [1, 1], "data": [1]', b'"shape": [1, 1125899906842624], "shape": [1, 1]'
        ),
        {},
        "a key twice",
    ),
    "a hidden key": (INFER, infer(STEPS).replace(b'"data": [1]', b'"d\\u0061ta": [1]'), {}, "has escapes"),
    "another datatype": (INFER, infer(tensor("STEPS", "FP64", [1, 1], [1])), {}, "another datatype"),
    "an unknown input": (INFER, infer(tensor("SHARPNESS", "FP32", [1, 1], [1])), {}, "an unknown one"),
    "a number for a truth": (GENERATE, b'{"PROMPT":"x","PASTE_BACK":1}', {}, "values of another type"),
    "a share that is a text": (GENERATE, b'{"PROMPT":"x","STRENGTH":"0.5"}', {}, "values of another type"),
    "a share beyond fp64": (GENERATE, b'{"PROMPT":"x","STRENGTH":1e999}', {}, "values of another type"),
    "two masks": (GENERATE, b'{"PROMPT":"x","MASK":["a","b"]}', {}, "more or fewer values"),
    "an input twice": (INFER, infer(STEPS, STEPS), {}, "given twice"),
    "an input in shared memory": (
        INFER,
        infer(tensor("STEPS", "INT32", [1, 1], parameters={"shared_memory_region": "x"})),
        {},
        "parameter is unknown",
    ),
    "an output in shared memory": (
        INFER,
        infer(outputs=[{"name": "IMAGE", "parameters": {"shared_memory_region": "x"}}]),
        {},
        "parameter is unknown",
    ),
    "many outputs": (INFER, infer(outputs=[{"name": "IMAGE"}] * 9), {}, "asked for twice"),
    "many values": (
        INFER,
        infer(tensor("IMAGES", "BYTES", [1, 8], ["x"] * 100000)),
        {},
        "more than 256 values",
    ),
    "a parameter of the server": (INFER, infer(parameters={"sequence_id": 1}), {}, "parameter is unknown"),
    "a file of the server": (
        GENERATE,
        b'{"PROMPT":"x","parameters":{"cancel_file":"/"}}',
        {},
        "unknown here",
    ),
    "an unknown key": (GENERATE, b'{"PROMPT":"x","model":"y"}', {}, "an unknown key"),
    "many pictures": (
        GENERATE,
        json.dumps({"PROMPT": "x", "IMAGES": ["x"] * 9}).encode(),
        {},
        "more or fewer",
    ),
    "a text for a number": (GENERATE, b'{"PROMPT":"x","STEPS":"4"}', {}, "of another type"),
    **{
        f"{name} {number}": (
            GENERATE,
            b'{"PROMPT":"x","%s":%s}' % (name.encode(), number),
            {},
            "beyond its range",
        )
        for name, number in (
            ("STEPS", b"1.5"),
            ("STEPS", b"2.0"),
            ("STEPS", b"1e0"),
            ("STEPS", b"2147483648"),
            ("SEED", b"-1"),
            ("SEED", b"18446744073709551616"),
            ("GUIDANCE", b"1e400"),
        )
    },
    "an endless number": (GENERATE, b'{"PROMPT":"x","STEPS":' + b"1" * 10**6 + b"}", {}, "malformed"),
    "no number": (GENERATE, b'{"PROMPT":"x","GUIDANCE":NaN}', {}, "malformed"),
    **{
        f"{word!r} as id at {path}": (path, body.replace(b"W", word), {}, "no short text of ASCII")
        for path, body in ((GENERATE, b'{"PROMPT":"x","id":"W"}'), (INFER, infer(id="W")))
        for word in (b"\xff", "ä".encode(), b"\x01", b"x" * 65)
    },
    **{
        f"{text.decode()}, which is no JSON": (
            GENERATE,
            b'{"PROMPT":"x","GUIDANCE":%s}' % text,
            {},
            "malformed",
        )
        for text in (rb'"\x41"', rb'"\uZZZZ"', rb'"\uD8"', rb'"\u12"', b"1.", b"01", b"-", b"1e", b"-00")
    },
    "many escapes": (GENERATE, b'{"PROMPT":"%s"}' % (b"\\\\" * 10**6), {}, "more than 131072 escapes"),
    "half a text": (GENERATE, b'{"PROMPT":"x', {}, "ends inside a string"),
    **{
        f"half a surrogate pair, {word.decode()}": (
            path,
            b'{"PROMPT":"%s"}' % word if path == GENERATE else infer().replace(b'["x"]', b'["%s"]' % word),
            {},
            "half of a surrogate pair",
        )
        for path, word in (
            (GENERATE, rb"a \ud800 b"),
            (GENERATE, rb"\uDFFF"),
            (GENERATE, rb"\uD83D\u0041"),
            (INFER, rb"\\uD83D\uDE00"),
        )
    },
    "two requests": (GENERATE, b'{"PROMPT":"x"}{"PROMPT":"x"}', {}, "behind the JSON"),
    "nothing": (GENERATE, b"", {}, "malformed"),
    "zeros": (GENERATE, b"\0" * 1000, {}, "malformed"),
    "a header that is longer than all": (
        INFER,
        infer(),
        {"Inference-Header-Content-Length": "99999"},
        "more than there is",
    ),
    "a header that is no length": (INFER, infer(), {"Inference-Header-Content-Length": "-1"}, "is no length"),
    "more bytes than there are": (INFER, *in_bytes(size=2**62), "more bytes than the request"),
    "fewer bytes than there are": (INFER, *in_bytes(value=b"\x01\0\0\0xyz"), "bytes of no input"),
    "a text longer than its tensor": (
        INFER,
        *in_bytes(value=b"\xff\xff\xff\xffx"),
        "not what its shape says",
    ),
    "a large shape with few bytes": (INFER, *in_bytes(shape=(1, 2**50)), "not the contract's"),
    "compressed": (
        GENERATE,
        zlib.compress(NESTED),
        {"Content-Encoding": "deflate"},
        "without Content-Encoding",
    ),
    "a query": (GENERATE + "?x=1", b'{"PROMPT":"x"}', {}, "takes no query"),
    "shared memory": ("/v2/systemsharedmemory/region/anything/register", REGION, {}, "no such path"),
    "CUDA's memory": ("/v2/cudasharedmemory/region/anything/register", REGION, {}, "no such path"),
    "unloading": ("/v2/repository/models/kontext/unload", b"{}", {}, "no such path"),
    "the list of models": ("/v2/repository/index", b"{}", {}, "no such path"),
    "logging": ("/v2/logging", b"{}", {}, "no such path"),
    "traces": ("/v2/trace/setting", b"{}", {}, "no such path"),
    "a version": ("/v2/models/kontext/versions/1/infer", infer(), {}, "no such path"),
    "another verb": ("/v2/models/kontext_stream/infer", infer(), {}, "no such path"),
    "questions by POST": ("/v2/health/live", b"{}", {}, "send this with GET"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_edit_does_not_reach_the_server(server: Any, front: Front, name: str) -> None:
    path, body, headers, message = REFUSED[name]
    before = server.process_restarts()
    status, answer = send(front.http + path, body, headers)
    assert 400 <= status < 500, answer
    assert message in json.loads(answer)["error"]
    assert server.process_restarts() == before
    assert send(f"{front.http}/v2/health/ready")[0] == 200


def test_edits_are_unchanged(server: Any, front: Front, local: Pipeline, pictures: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    files = [picture_file(path) for path in pictures]
    asked = Edit('say "ä\\b"', files, 3, 3.5, 2**64 - 1, (96, 64), "offset", "output")
    answer = connect(front.http).edit(asked, lambda step, total: seen.append((step, total)))
    references = [Image.open(path) for path in pictures]
    options: dict[str, Any] = {"reference_method": "offset", "reference_size": "output"}
    expected = local.edit(
        references, asked.prompt, steps=3, guidance=3.5, seed=2**64 - 1, size=(96, 64), **options
    )
    assert np.array_equal(np.asarray(answer.picture), np.asarray(expected))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_every_form_of_a_request_is_the_servers(server: Any, front: Front, pictures: list[Path]) -> None:
    """The same bytes to the server and through the front get the same bytes."""
    bytes_, headers = in_bytes()
    image = base64.b64encode(pictures[0].read_bytes()).decode()
    repaint = {"MASK": image, "PASTE_BACK": True, "STRENGTH": 0.5, "MASK_BLUR": 1, "NEGATIVE_PROMPT": ""}
    forms: list[tuple[str, bytes, dict[str, str]]] = [
        (INFER, bytes_, headers),
        (INFER, infer(STEPS, parameters={"base64": True}, id="one"), {}),
        (INFER, infer(tensor("SIZE", "INT32", [1, 2], [[64, 64]]), STEPS, outputs=[{"name": "IMAGE"}]), {}),
        (GENERATE, json.dumps({"PROMPT": "x", "STEPS": 1, "IMAGES": [image, image]}).encode(), {}),
        (GENERATE, b' { "PROMPT" :\n"x" , "STEPS" : [ 1 ] , "base64" : true } ', {}),
        ("/v2/models/kontext_stream/generate", b'{"PROMPT":"x","STEPS":1,"progress":false}', {}),
        (STREAM, b'{"PROMPT":"x","STEPS":2}', {}),
        (GENERATE, b'{"PROMPT":"x","STEPS":0}', {}),
        (GENERATE, rb'{"PROMPT":"\uD83D\ude00 \\ud800 \/ \u00e4","STEPS":1}', {}),
        (GENERATE, b'{"PROMPT":"x","STEPS":1,"SEED":18446744073709551615,"GUIDANCE":2.5e0}', {}),
        (GENERATE, json.dumps({"PROMPT": "x", "STEPS": 2, "IMAGES": image, **repaint}).encode(), {}),
        (INFER, infer(STEPS, tensor("STRENGTH", "FP64", [1, 1], [0.5])), {}),
        (INFER, infer(STEPS, tensor("PASTE_BACK", "BOOL", [1, 1], [True])), {}),
    ]
    for path, body, extra in forms:
        through, direct = send(front.http + path, body, extra), send(server.http + path, body, extra)
        assert through == direct, path
    for path in ("/v2", "/v2/health/live", "/v2/models/kontext", "/v2/models/kontext_stream/ready"):
        assert send(front.http + path) == send(server.http + path)
    assert send(f"{front.http}/v2/models/kontext/config")[0] == 404
    assert send(f"{front.http}/v2/models/kontext/stats")[0] == 404


def test_steps_come_when_they_are_done(front: Front) -> None:
    """Not all at the end: the first is there while later ones are still to come."""
    arrived: list[float] = []
    connect(front.http).edit(
        Edit("x", steps=40, size=(256, 256)), lambda *_: arrived.append(time.monotonic())
    )
    assert len(arrived) == 40
    assert len({round(moment, 3) for moment in arrived}) > 20


def test_a_caller_who_leaves_stops_the_edit(server: Any, front: Front) -> None:
    cancelled, two = server.outcomes("cancelled"), threading.Event()
    client = connect(front.http)

    def call() -> None:
        with pytest.raises(Exception, match="127"):
            client.edit(
                Edit("x", steps=200, size=(512, 512)), lambda step, _: two.set() if step == 2 else None
            )

    thread = threading.Thread(target=call)
    thread.start()
    assert two.wait(120)
    client.close()
    thread.join(60)
    until(lambda: server.outcomes("cancelled") == cancelled + 1)


def test_chunks_are_joined(server: Any, front: Front) -> None:
    """Small chunks, each of which the server once put on its stack, reach it as one piece."""
    connection = http.client.HTTPConnection(front.http.removeprefix("http://"), timeout=60)
    chunks = (bytes([byte]) for byte in b'{"PROMPT":"x","STEPS":1}' + b" " * 20000)
    connection.request("POST", GENERATE, chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 200


def test_limits_of_one_caller(server: Any, front: Front, tmp_path: Path) -> None:
    body = json.dumps({"PROMPT": "x", "IMAGES": "A" * 2**21}).encode()
    with Front(server.models.parent, server, tmp_path, REQUESTS="1", BURST="3", MOST_BODY="1m") as strict:
        assert send(strict.http + GENERATE, body)[0] == 413
        statuses = [send(f"{strict.http}/v2/health/live")[0] for _ in range(6)]
        assert statuses[0] == 200
        assert statuses[-1] == 429
    with Front(server.models.parent, server, tmp_path, EDITS="1") as strict:
        started = threading.Event()
        long = Edit("x", steps=200, size=(256, 256))
        client = connect(strict.http)
        thread = threading.Thread(target=lambda: quietly(client, long, started))
        thread.start()
        assert started.wait(60)
        status, answer = send(strict.http + GENERATE, {"PROMPT": "x", "STEPS": 1})
        assert (status, json.loads(answer)["error"][:17]) == (429, "too many requests")
        client.close()
        thread.join(60)


def quietly(client: Any, edit: Edit, started: threading.Event) -> None:
    try:
        client.edit(edit, lambda *_: started.set())
    except Exception:
        return


def test_with_a_certificate_it_speaks_tls(server: Any, front: Front, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not there to make a certificate")
    (tmp_path / "tls").mkdir()
    make = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout tls/tls.key -out tls/tls.crt -subj /CN=localhost"
    )
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True)
    with Front(server.models.parent, server, tmp_path) as encrypted:
        context = ssl.create_default_context(cafile=tmp_path / "tls" / "tls.crt")
        context.check_hostname = False
        address = encrypted.http.removeprefix("http://")
        connection = http.client.HTTPSConnection(address, timeout=60, context=context)
        connection.request("POST", GENERATE, b'{"PROMPT":"x","STEPS":1}')
        assert connection.getresponse().status == 200


def test_a_server_that_is_away_is_503(server: Any, front: Front, tmp_path: Path) -> None:
    with Front(server.models.parent, server, tmp_path, SERVER="127.0.0.1:9", HEALTH="127.0.0.1:9") as alone:
        for path, body in ((GENERATE, {"PROMPT": "x"}), ("/v2/health/ready", None)):
            status, answer = send(alone.http + path, body)
            assert (status, "try again" in json.loads(answer)["error"]) == (503, True)


def test_its_own_folder_is_the_same_each_time(server: Any, front: Front, tmp_path: Path) -> None:
    """One for this user and port, so that starts leave no more and more of them."""
    temporary = tmp_path / "t"
    temporary.mkdir()
    alone = Front(server.models.parent, server, tmp_path, STATE="", TMPDIR=str(temporary))
    for _ in range(2):
        with alone:
            (folder,) = temporary.iterdir()
            assert (folder / "nginx.pid").read_text().strip() == str(
                alone.process.pid
            )  # no shell is left between
    assert list(temporary.iterdir()) == [folder]
    with alone:
        assert "another front runs with" in refused(alone)
    folder.chmod(0o777)
    assert "others can write to it: name a folder of yours as STATE" in refused(alone)
    folder.chmod(0o755)
    folder.rename(temporary / "elsewhere")
    folder.symlink_to(temporary / "elsewhere")
    assert "is a link" in refused(alone)
    folder.unlink()
    folder.touch()
    assert "cannot be made: name a folder as STATE" in refused(alone)


@pytest.mark.parametrize("name", ["a b", "a&b", "a|b", "a;b", "a'b"])
def test_names_that_nginx_would_read_otherwise(server: Any, front: Front, tmp_path: Path, name: str) -> None:
    alone = Front(server.models.parent, server, tmp_path, STATE=str(tmp_path / name))
    assert "only letters, digits and" in refused(alone)


def refused(front: Front) -> str:
    """What a start says that ends at once."""
    done = subprocess.run(
        ["sh", front.start], env=front.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    return done.stderr


def test_half_a_request_holds_nobody(front: Front) -> None:
    """Callers that stay silent, in the head or in the body, while others are served."""
    address = ("127.0.0.1", int(front.http.rpartition(":")[2]))
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n".encode()
    silent = [socket.create_connection(address) for _ in range(60)]
    try:
        for index, each in enumerate(silent):
            each.sendall((b"", head, head + b"\r\n{")[index % 3])
        assert send(front.http + GENERATE, {"PROMPT": "x", "STEPS": 1})[0] == 200
    finally:
        for each in silent:
            each.close()
