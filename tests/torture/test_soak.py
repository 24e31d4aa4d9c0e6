"""60 callers of all kinds at a real server behind its front, while model processes are killed: no good edit is lost or
wrong, no bad one is more than an error, and the server comes back."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.server import supervisor
from kontext.runtime.server_client import Edit, connect

from ..runtime import conftest as runtime
from ..runtime.conftest import Front, Served, send

server_environment, server_folder = runtime.server_environment, runtime.server_folder
server, front, local = runtime.server, runtime.front, runtime.local

KILL_SECONDS = 60.0
"""Between two kills; the first comes after a third of it."""

CALLERS = {
    "good": 12,
    "plain": 6,
    "long": 4,
    "malformed": 14,
    "cancelled": 6,
    "slow": 6,
    "huge": 4,
    "idle": 8,
}

GENERATE, INFER = "/v2/models/kontext/generate", "/v2/models/kontext/infer"
STREAM = "/v2/models/kontext_stream/generate_stream"


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((side, side), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


GOOD = [
    Edit("make it blue", [png(128)], 2, seed=1),
    Edit("a red circle", steps=4, seed=2),
    Edit("add a star", [png(96), png(64)], 3, seed=3),
    Edit("draw a circle", steps=4, seed=4, size=(96, 64)),
    Edit("make it red", [png(200)], 5, 3.5, seed=2**64 - 1),
]
LONG = Edit("a green square", steps=200, seed=5)


def shaped(shape: list[Any]) -> bytes:
    inputs = [
        {"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]},
        {"name": "STEPS", "datatype": "INT32", "shape": shape, "data": [1]},
    ]
    return json.dumps({"inputs": inputs}).encode()


MALFORMED: list[tuple[str, bytes | dict[str, Any]]] = [
    (INFER, b"[" * 200000),
    (GENERATE, b'{"PROMPT":' + b"[" * 200000),
    (STREAM, b"[" * 200000),
    (INFER, shaped([1, 2**50])),
    (INFER, shaped([1, 10**9])),
    (INFER, shaped([1] * 99)),
    (GENERATE, b"\0" * 1000),
    (GENERATE, b""),
    (GENERATE, {"PROMPT": "x", "STEPS": 10**6}),
    (GENERATE, {"PROMPT": "x", "SIZE": [1 << 20, 1 << 20]}),
    (GENERATE, {"PROMPT": "x", "IMAGES": "?!"}),
    (GENERATE, {"PROMPT": "x", "IMAGES": base64.b64encode(png(300)[:400]).decode()}),
    (GENERATE, {"PROMPT": "forbidden"}),
    ("/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 64}),
    ("/v2/repository/models/kontext/unload", {}),
]


@dataclass
class Soak:
    """What the callers share."""

    http: str
    pictures: dict[int, Any]
    """Index in [*GOOD, LONG] → the pixels of the edit made alone."""
    stop: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.http.rpartition(":")[2])

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fault(self, line: str) -> None:
        with self.lock:
            self.faults.append(line)

    def check(self, kind: str, index: int, picture: Image.Image) -> None:
        self.count(kind)
        if not np.array_equal(np.asarray(picture), self.pictures[index]):
            self.fault(f"{kind}: edit {index} is another picture")


def good(soak: Soak, draw: random.Random) -> None:
    index = draw.randrange(len(GOOD))
    try:
        soak.check("good", index, connect(soak.http).edit(GOOD[index]).picture)
    except KontextError as error:
        soak.fault(f"good: {error}")


def plain(soak: Soak, draw: random.Random) -> None:
    """Without our client: `generate`, sent again while the front says 503."""
    index = draw.randrange(len(GOOD))
    values = {name: each for name, each in GOOD[index].values().items() if name != "IMAGES"}
    body: dict[str, Any] = {
        name: [each.decode() if isinstance(each, bytes) else each for each in listed]
        for name, listed in values.items()
    }
    if GOOD[index].images:
        body["IMAGES"] = [base64.b64encode(image).decode() for image in GOOD[index].images]
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        status, answer = send(soak.http + GENERATE, body)
        if status == 200:
            file = base64.b64decode(json.loads(answer)["IMAGE"])
            return soak.check("plain", index, Image.open(io.BytesIO(file)))
        if status != 503 and b"is not healthy" not in answer:
            return soak.fault(f"plain: {status} {answer[:200]!r}")
        time.sleep(1)
    return soak.fault("plain: no answer in 300 s")


def long(soak: Soak, draw: random.Random) -> None:
    try:
        soak.check("long", len(GOOD), connect(soak.http).edit(LONG).picture)
    except KontextError as error:
        soak.fault(f"long: {error}")


def malformed(soak: Soak, draw: random.Random) -> None:
    path, body = draw.choice(MALFORMED)
    status, answer = send(soak.http + path, body)
    soak.count("malformed")
    # 503, and the error of a dead process: requests that the front cannot know to be wrong, during a restart.
    if not (400 <= status < 500 or status == 503):
        soak.fault(f"malformed: {status} {answer[:200]!r} to {str(body)[:80]}")
    soak.stop.wait(draw.uniform(0, 0.3))


def cancelled(soak: Soak, draw: random.Random) -> None:
    body = json.dumps({"PROMPT": "x", "STEPS": 200, "SIZE": [256, 256]}).encode()
    head = f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(soak.address, timeout=60) as connection:
        connection.sendall(head + body)
        soak.stop.wait(draw.uniform(0, 3))
    soak.count("cancelled")


def slow(soak: Soak, draw: random.Random) -> None:
    """One byte a second, of a request that never ends, until the front closes the connection."""
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\n"
    text = head + ("Content-Length: 1000\r\n\r\n{" if draw.random() < 0.5 else "")
    with socket.create_connection(soak.address, timeout=60) as connection:
        connection.sendall(text[:-1].encode())
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not soak.stop.wait(1):
            connection.sendall(b"x")
    soak.count("slow")


def huge(soak: Soak, draw: random.Random) -> None:
    """More than the front takes, or a request as large as it takes that is no picture."""
    if draw.random() < 0.5:
        head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**40}\r\n\r\n".encode()
        with socket.create_connection(soak.address, timeout=60) as connection:
            connection.sendall(head + b"x" * 65536)
            if b" 413 " not in connection.recv(100):
                soak.fault("huge: no 413")
    else:
        status, _ = send(soak.http + GENERATE, {"PROMPT": "x", "IMAGES": "A" * 3_000_000})
        if status not in (400, 503):
            soak.fault(f"huge: {status}")
    soak.count("huge")
    soak.stop.wait(draw.uniform(0, 4))


def idle(soak: Soak, draw: random.Random) -> None:
    with socket.create_connection(soak.address, timeout=60):
        soak.stop.wait(draw.uniform(1, 30))
    soak.count("idle")


def call(soak: Soak, kind: Callable[[Soak, random.Random], None], seed: int) -> None:
    draw = random.Random(seed)
    while not soak.stop.is_set():
        try:
            kind(soak, draw)
        except OSError as error:  # of a raw connection; `good` and `long` have their own
            if kind in (plain, malformed):
                soak.fault(f"{kind.__name__}: {error!r}")
            soak.stop.wait(0.2)


def kill(server: Any, model: str) -> float:
    """Kills a model's process; returns the seconds until the server is ready again."""
    restarts = server.process_restarts()
    (tritonserver,) = supervisor.children(server.process.pid)
    for process in supervisor.live_stubs(tritonserver):
        if f"/{model}/1/model.py" in Path(f"/proc/{process}/cmdline").read_text():
            os.kill(process, signal.SIGKILL)
    killed = time.monotonic()
    while time.monotonic() < killed + 120:
        with contextlib.suppress(OSError):
            status, answer = send(f"{server.health}/ready")
            if status == 200 and json.loads(answer)["restarts"] > restarts:
                break
        time.sleep(0.05)
    return time.monotonic() - killed


@pytest.fixture
def soak(front: Front, local: Pipeline) -> Iterator[Soak]:
    pictures = {}
    for index, edit in enumerate([*GOOD, LONG]):
        references = [Image.open(io.BytesIO(file)) for file in edit.images] or None
        options = {"steps": edit.steps, "guidance": edit.guidance, "seed": edit.seed, "size": edit.size}
        pictures[index] = np.asarray(local.edit(references, edit.prompt, **options))  # type: ignore[arg-type]
    made = Soak(front.http, pictures)
    yield made
    made.stop.set()


def test_no_good_edit_is_lost_or_wrong(server: Served, soak: Soak, minutes: float) -> None:
    kinds = [globals()[name] for name, count in CALLERS.items() for _ in range(count)]
    threads = [
        threading.Thread(target=call, args=(soak, kind, seed), daemon=True) for seed, kind in enumerate(kinds)
    ]
    for thread in threads:
        thread.start()
    end, recoveries = time.monotonic() + 60 * minutes, []
    soak.stop.wait(KILL_SECONDS / 3)
    while time.monotonic() < end:
        recoveries.append(kill(server, ("kontext_stream", "kontext")[len(recoveries) % 2]))
        soak.stop.wait(min(KILL_SECONDS, max(0.0, end - time.monotonic())))
    soak.stop.set()
    for thread in threads:
        thread.join(400)
    print(f"\n{minutes:g} minutes, {len(threads)} callers: {dict(soak.counts)}")
    print(f"kills {len(recoveries)}, seconds until ready: {[round(each, 1) for each in recoveries]}")
    print(f"restarts {server.process_restarts()}, faults {len(soak.faults)}")
    assert soak.faults == []
    assert not any(thread.is_alive() for thread in threads)
    assert server.process_restarts() == len(recoveries)  # nothing but the kills ended it
    assert all(soak.counts[name] for name in CALLERS)
    assert max(recoveries) < 120
