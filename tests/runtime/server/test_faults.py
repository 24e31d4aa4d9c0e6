"""A real server and what should not be sent to it: one clear line to that caller, and nothing else is affected."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.bench.serving.local_server import LocalServer
from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.server_client import Edit, connect

from ..conftest import until

GENERATE = "models/kontext/generate"


def bomb() -> bytes:
    """A PNG file of 60 bytes that says that it is 50000x50000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def png(width: int = 32, height: int = 32, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensor(name: str, dtype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": dtype, "shape": shape, "data": data}


PROMPT = tensor("PROMPT", "BYTES", [1, 1], ["x"])

BAD_EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"STEPS": 1}, "PROMPT is missing"),
    "no steps": ({"PROMPT": "x", "STEPS": 0}, "steps must be a whole number of 1 or more"),
    "negative steps": ({"PROMPT": "x", "STEPS": -5}, "steps must be a whole number of 1 or more"),
    "too many steps": ({"PROMPT": "x", "STEPS": 1000000}, "STEPS may be at most 200 here"),
    "odd size": (
        {"PROMPT": "x", "SIZE": [100, 128]},
        "both sides must be multiples of 16; the nearest is 96x128",
    ),
    "negative size": ({"PROMPT": "x", "SIZE": [-16, 16]}, "size -16x16: width and height must be above 0"),
    "no size": ({"PROMPT": "x", "SIZE": [0, 0]}, "size 0x0: width and height must be above 0"),
    "huge size": ({"PROMPT": "x", "SIZE": [1 << 20, 1 << 20]}, "times as large as this model's pictures"),
    "a megabyte of prompt": ({"PROMPT": "word " * 200000}, "PROMPT has 1000000 bytes; at most 16384"),
    "no picture": (
        {"PROMPT": "x", "IMAGES": text(b"no picture at all")},
        "IMAGES[0] is neither a PNG, JPEG or WebP file nor base64",
    ),
    "no base64": (
        {"PROMPT": "x", "IMAGES": "?!"},
        "IMAGES[0] is neither a PNG, JPEG or WebP file nor base64",
    ),
    "another format": (
        {"PROMPT": "x", "IMAGES": text(png(kind="TIFF"))},
        "IMAGES[0] is neither a PNG, JPEG or WebP file nor base64",
    ),
    "a bomb": ({"PROMPT": "x", "IMAGES": text(bomb())}, "IMAGES[0] has more than 64 million pixels"),
    "half a picture": (
        {"PROMPT": "x", "IMAGES": text(png(300, 300)[:200])},
        "IMAGES[0] cannot be read as a picture",
    ),
    "the second is bad": ({"PROMPT": "x", "IMAGES": [text(png()), text(bomb())]}, "IMAGES[1] has more than"),
    "many pictures": ({"PROMPT": "x", "IMAGES": [text(png())] * 9}, "IMAGES has 9 pictures; at most 8"),
    "a filter's refusal": ({"PROMPT": "forbidden"}, "this prompt is not allowed here"),
}


@pytest.mark.parametrize("name", BAD_EDITS)
def test_a_bad_edit_gets_one_line(server: Any, name: str) -> None:
    body, message = BAD_EDITS[name]
    status, answer = server.post(GENERATE, body)
    assert status == 400
    error = json.loads(answer)["error"]
    assert message in error
    assert "\n" not in error
    assert "Traceback" not in error


def slow() -> bytes:
    """A progressive JPEG file of 62 million pixels in all the scans that are allowed: 3 s to decode."""
    file = io.BytesIO()
    Image.new("L", (7900, 7900), 100).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 58 + data[-2:]


def test_a_picture_that_takes_long_delays_no_other_edit(server: Any) -> None:
    answers = []
    body = {"PROMPT": "x", "IMAGES": text(slow())}

    def send() -> None:
        answers.append(server.post(GENERATE, body))

    hostile = [threading.Thread(target=send) for _ in range(2)]  # as many as there are processes
    hostile[0].start()
    good = {"PROMPT": "x", "IMAGES": text(png()), "STEPS": 1, "SIZE": [64, 64]}
    status, answer = server.post(GENERATE, good)
    assert (status, "IMAGE" in json.loads(answer)) == (200, True)
    assert not answers
    hostile[1].start()
    for each in hostile:
        each.join()
    for status, answer in answers:
        assert status == 400
        assert "IMAGES[0] takes more than 1 s to decode" in json.loads(answer)["error"]
    status, answer = server.post(GENERATE, good)
    assert (status, "IMAGE" in json.loads(answer)) == (200, True)


BAD_TENSORS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "none": ([], "inputs"),
    "unknown": (
        [PROMPT, tensor("SHARPNESS", "FP32", [1, 1], [3.0])],
        "unexpected inference input 'SHARPNESS'",
    ),
    "dtype": ([PROMPT, tensor("STEPS", "FP32", [1, 1], [3.0])], "'STEPS' data-type is 'FP32'"),
    "dtype of the prompt": ([tensor("PROMPT", "INT32", [1, 1], [3])], "'PROMPT' data-type is 'INT32'"),
    "shape": ([PROMPT, tensor("SIZE", "INT32", [1, 3], [64, 64, 64])], "'SIZE'"),
    "rank": ([tensor("PROMPT", "BYTES", [1], ["x"])], "'PROMPT'"),
    "batch": ([tensor("PROMPT", "BYTES", [2, 1], ["x", "y"])], "batch-size must be <= 1"),
    "fewer values than the shape says": ([tensor("PROMPT", "BYTES", [1, 1], [])], "'PROMPT'"),
    "more values than the shape says": ([tensor("PROMPT", "BYTES", [1, 1], ["x", "y"])], "'PROMPT'"),
    "a text for a number": ([PROMPT, tensor("STEPS", "INT32", [1, 1], ["four"])], "Unable to parse 'data'"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_malformed_tensors_are_refused(server: Any, name: str) -> None:
    inputs, message = BAD_TENSORS[name]
    status, answer = server.post("models/kontext/infer", {"inputs": inputs})
    assert status in (400, 500)  # 500 is the server's own word for JSON of the wrong kind
    assert message in json.loads(answer)["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\x00" * 1000, b'{"PROMPT": ' + b"[" * 10000])
def test_what_is_not_a_request_is_refused(server: Any, body: bytes) -> None:
    for path in (GENERATE, "models/kontext/infer", "models/kontext_stream/generate_stream"):
        status, answer = server.post(path, body)
        assert status in (400, 500)  # 500 is the server's own word for what is not JSON
        assert json.loads(answer)["error"]


def test_a_batch_is_for_the_server_to_make(server: Any) -> None:
    two = [tensor("PROMPT", "BYTES", [2, 1], ["x", "y"])]
    status, answer = server.post("models/kontext_stream/generate", {"PROMPT": ["x", "y"]})
    assert status == 400
    assert "PROMPT" in json.loads(answer)["error"]
    assert server.post("models/kontext_stream/infer", {"inputs": two})[0] >= 400


def test_a_prompt_that_is_no_text(server: Any) -> None:
    value = b"\xff\xfe"
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "PROMPT",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": 4 + len(value)},
                }
            ]
        }
    ).encode()
    body = head + struct.pack("<I", len(value)) + value
    status, answer = server.post(
        "models/kontext/infer", body, {"Inference-Header-Content-Length": str(len(head))}
    )
    assert (status, json.loads(answer)["error"]) == (400, "PROMPT is not UTF-8")


def test_what_breaks_inside_stays_inside(server: Any) -> None:
    before = server.outcomes("failed")
    status, answer = server.post(
        "models/kontext/infer", {"inputs": [tensor("PROMPT", "BYTES", [1, 1], ["broken filter"])]}
    )
    assert status == 500
    assert b"secret" not in answer
    assert b"its log says why" in answer
    for _ in range(300):  # the server logs and counts when it comes to it
        told = "ZeroDivisionError: secret of the filter" in server.log.read_text()
        if told and server.outcomes("failed") == before + 1:
            break
        time.sleep(0.1)
    assert told
    assert server.outcomes("failed") == before + 1


def test_codes_over_grpc(server: Any) -> None:
    found = server.call_grpc("refused")
    assert found["steps"] == [
        "StatusCode.INVALID_ARGUMENT",
        "steps must be a whole number of 1 or more, not 0",
    ]
    assert found["size"][0] == "StatusCode.INVALID_ARGUMENT"
    assert found["stream"] == "steps must be a whole number of 1 or more, not 0"


def test_others_do_not_notice(server: Any, local: Pipeline) -> None:
    """Good edits among bad ones, in the same batches."""
    expected = np.asarray(local.edit(None, "a red circle", steps=2, seed=4))
    client, good, faults = connect(server.http), Edit("a red circle", steps=2, seed=4), []

    def bad(index: int) -> None:
        body = list(BAD_EDITS.values())[index % len(BAD_EDITS)][0]
        if server.post(GENERATE, {**body, "STEPS": body.get("STEPS", 2)})[0] != 400:
            faults.append(body)

    threads = [threading.Thread(target=bad, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert np.array_equal(np.asarray(client.edit(good).picture), expected)
    for thread in threads:
        thread.join()
    assert faults == []


# -- callers that ask for much --


def test_short_edits_do_not_wait_for_long_ones(server: Any, local: Pipeline) -> None:
    """More long ones than there are places; the short ones are answered while all of the long ones still run."""
    expected = np.asarray(local.edit(None, "a red circle", steps=4, seed=4))
    begun, client, cancelled = threading.Event(), connect(server.http), server.outcomes("cancelled")
    sizes = [(512, 512), (256, 512), (512, 256), (384, 384), (256, 256), (512, 384)]

    def long(size: tuple[int, int]) -> None:
        with pytest.raises(KontextError):
            client.edit(Edit("x", steps=200, size=size), lambda *_: begun.set())

    threads = [threading.Thread(target=long, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    for _ in range(3):
        answer = connect(server.http).edit(Edit("a red circle", steps=4, seed=4))
        assert np.array_equal(np.asarray(answer.picture), expected)
    assert all(thread.is_alive() for thread in threads)
    status, answer = server.post("models/kontext/generate", {"PROMPT": "", "parameters": {"probe": True}})
    assert (status, json.loads(answer)["IMAGE"]) == (200, "")  # the supervisor's probe does not wait either
    metrics = server.read_metrics()
    assert metrics['kontext_queue_length{model="kontext_stream"}'] >= 2
    assert metrics['kontext_queue_seconds_count{model="kontext_stream"}'] >= 3
    client.close()
    for thread in threads:
        thread.join(60)
    until(lambda: server.outcomes("cancelled") == cancelled + len(sizes))
    assert server.read_metrics()['kontext_queue_length{model="kontext_stream"}'] == 0


# -- callers that go away --


def steps_done(server: Any) -> float:
    done: float = server.read_metrics()['kontext_steps_total{model="kontext_stream"}']
    return done


def test_a_cancelled_stream_stops_the_sampler(server: Any) -> None:
    cancelled, before = server.outcomes("cancelled"), steps_done(server)
    seen = server.call_grpc("cancel")
    assert seen["steps"][:2] == [1, 2]
    assert seen["ended"]
    assert len(seen["faults"]) == 1
    until(lambda: server.outcomes("cancelled") == cancelled + 1)
    done = steps_done(server)
    assert 2 <= done - before < 200
    time.sleep(0.5)
    assert steps_done(server) == done
    assert "outcome=cancelled" in server.log.read_text()


def test_a_closed_http_stream_stops_the_sampler(server: Any) -> None:
    cancelled, before = server.outcomes("cancelled"), steps_done(server)
    client, two, faults = connect(server.http), threading.Event(), []

    def call() -> None:
        try:
            client.edit(
                Edit("draw a circle", steps=200, size=(512, 512)),
                lambda step, total: two.set() if step == 2 else None,
            )
        except KontextError as fault:
            faults.append(fault)

    thread = threading.Thread(target=call)
    thread.start()
    assert two.wait(120)
    client.close()
    thread.join(60)
    assert len(faults) == 1
    until(lambda: server.outcomes("cancelled") == cancelled + 1)
    assert steps_done(server) - before < 200


def test_a_cancelled_plain_request_stops_the_sampler(server: Any) -> None:
    cancelled, before = server.outcomes("cancelled"), steps_done(server)
    process = server.grpc_process("cancel-unary")
    until(lambda: steps_done(server) > before)  # it runs; the caller sees no steps
    output, errors = process.communicate("now\n", timeout=120)
    assert process.returncode == 0, errors
    assert "cancel" in json.loads(output)["faults"][0].lower()
    until(lambda: server.outcomes("cancelled") == cancelled + 1)
    assert steps_done(server) - before < 200


# -- bundles that are not what they were --


def flip(path: Path) -> None:
    """Changes the last bit of a file, in place and with its size kept."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # it may be a hard link to the bundle's
    path.write_bytes(data)


def flip_graph(stream: Path) -> None:
    """A graph is executed, and compared whatever config.pbtxt says of the other files."""
    config = stream / "config.pbtxt"
    text = config.read_text()
    changed = text.replace(
        '"verify" value { string_value: "true" }', '"verify" value { string_value: "false" }'
    )
    assert changed != text
    config.write_text(changed)
    flip(stream / "1/bundle/transformer.onnx")


def swap_bundle(stream: Path) -> None:
    """A whole bundle, but not the one that the repository was written for."""
    manifest = stream / "1/bundle/manifest.json"
    data = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(data + b"\n")


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (
        lambda stream: flip(stream / "1/bundle/weights/transformer.safetensors"),
        "transformer.safetensors is damaged: its SHA-256 is not the manifest's",
    ),
    "graph": (flip_graph, "transformer.onnx is damaged: its SHA-256 is not the manifest's"),
    "bundle": (swap_bundle, "is not the required bundle: its digest is sha256:"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_bundle_is_not_served(server: Any, tmp_path: Path, kind: str) -> None:
    tamper, message = TAMPERED[kind]
    models = tmp_path / "models"
    shutil.copytree(server.models, models)
    tamper(models / "kontext_stream")
    log = tmp_path / "log"
    with pytest.raises(KontextError, match="the server did not start"), LocalServer(models, log=log):
        pass
    assert message in log.read_text()
