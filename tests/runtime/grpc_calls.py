"""What the tests ask of a server over gRPC; runs in the server's environment and prints JSON.

grpc_calls.py URL edit PICTURE STEPS SEED OUT | repaint PICTURE MASK OUT | unary … | cancel | cancel-unary | refused
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from kontext.errors import KontextError
from kontext.runtime.sent_pictures import picture_file
from kontext.runtime.server_client import Answer, Edit, connect

LONG = Edit("draw a circle", steps=200, size=(512, 512))


def edit(url: str, picture: str, steps: str, seed: str, output: str) -> dict[str, Any]:
    """Through the project's client: the steps that it saw, the sizes of their previews, and the picture."""
    seen: list[tuple[int, int]] = []
    previews: list[tuple[int, int]] = []
    asked = Edit(
        "make it blue",
        [picture_file(Path(picture))],
        int(steps),
        None,
        int(seed),
        on_preview=lambda preview: previews.append(preview.size),
    )
    answer = connect(url).edit(asked, lambda step, total: seen.append((step, total)))
    answer.picture.save(output)
    return {"seen": seen, "previews": previews}


def repaint(url: str, picture: str, mask: str, output: str) -> dict[str, Any]:
    """As `edit`, with inputs that older servers do not have."""
    files = [picture_file(Path(path)) for path in (picture, mask)]
    asked = Edit("make it blue", files[:1], 3, mask=files[1], strength=0.7, negative_prompt="", true_cfg=2.0)
    connect(url).edit(asked).picture.save(output)
    return {}


def unary(url: str, picture: str, steps: str, seed: str, output: str) -> dict[str, Any]:
    """Through the server's own client, one call and one answer."""
    asked = Edit("make it blue", [picture_file(Path(picture))], int(steps), None, int(seed))
    with tritonclient.grpc.InferenceServerClient(url.partition("://")[2]) as client:
        result = client.infer("kontext", connect(url).inputs(asked), request_id="unary-grpc")
    Path(output).write_bytes(result.as_numpy("IMAGE")[0, 0])
    return {"id": result.get_response().id}


def cancel(url: str) -> dict[str, Any]:
    """A long edit, ended by its caller after two steps."""
    client, steps, faults = connect(url), [], []
    two = threading.Event()

    def told(step: int, total: int) -> None:
        steps.append(step)
        if step == 2:
            two.set()

    def run() -> Answer | None:
        try:
            return client.edit(LONG, told)
        except KontextError as fault:
            faults.append(str(fault))
            return None

    thread = threading.Thread(target=run)
    thread.start()
    assert two.wait(120)
    client.close()
    thread.join(60)
    return {"steps": steps, "faults": faults, "ended": not thread.is_alive()}


def cancel_unary(url: str) -> dict[str, Any]:
    """The same through `kontext`, whose caller sees no steps: cancelled as soon as the server runs it."""
    ended = threading.Event()
    faults: list[str] = []

    def told(result: Any, error: Any) -> None:
        faults.append(str(error))
        ended.set()

    with tritonclient.grpc.InferenceServerClient(url.partition("://")[2]) as client:
        call = client.async_infer("kontext", connect(url).inputs(LONG), told)
        print("sent", file=sys.stderr, flush=True)
        sys.stdin.readline()  # the test says when
        call.cancel()
        assert ended.wait(60)
    return {"faults": faults}


def refused(url: str) -> dict[str, Any]:
    """Codes of gRPC for requests that make no sense."""
    found = {}
    with tritonclient.grpc.InferenceServerClient(url.partition("://")[2]) as client:
        for name, asked in (("steps", Edit("x", steps=0)), ("size", Edit("x", size=(100, 100)))):
            try:
                client.infer("kontext", connect(url).inputs(asked))
            except InferenceServerException as fault:
                found[name] = [fault.status(), fault.message()]
        try:
            connect(url).edit(Edit("x", steps=0))
        except KontextError as fault:
            found["stream"] = str(fault)
    return found


if __name__ == "__main__":
    call = {
        "edit": edit,
        "repaint": repaint,
        "unary": unary,
        "cancel": cancel,
        "cancel-unary": cancel_unary,
        "refused": refused,
    }
    print(json.dumps(call[sys.argv[2]](sys.argv[1], *sys.argv[3:])))
