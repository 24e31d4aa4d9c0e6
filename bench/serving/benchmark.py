"""Load on a server: concurrent callers in a closed loop, each sending its next edit when its last one is answered.

Throughput and latency percentiles against the number of callers, as Triton's perf_analyzer reports them.
"""

from __future__ import annotations

import argparse
import io
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import KontextError
from ...runtime.cli import parse_width_height
from ...runtime.images import read_picture
from ...runtime.sent_pictures import picture_file
from ...runtime.server_client import Client, Edit
from ..flags import at_least, parse_counts
from ..inputs import picture_and_prompt
from ..machine import describe_machine, machine_line
from ..report import Table, finish, milliseconds
from .local_server import connected
from .plot import draw_load

PERCENTILES = (50, 95, 99)
SCENE = (128, 128)
"""(width, height) of the generated scene."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "server",
        metavar="URL|BUNDLE",
        help="http://HOST:8000, grpc://HOST:8001, or a bundle to be served on this machine (needs `make server`)",
    )
    parser.add_argument("--concurrency", default="1,2,4,8,16", metavar="N,…", help="callers (1,2,4,8,16)")
    parser.add_argument("--requests", type=int, default=32, help="edits at each concurrency, at least (32)")
    parser.add_argument(
        "-i", "--image", type=Path, metavar="FILE", help="picture to edit (a generated scene)"
    )
    parser.add_argument("--prompt", help="instruction (the scene's)")
    parser.add_argument("--steps", type=int, default=4, help="sampler steps (4)")
    parser.add_argument(
        "--size", type=parse_width_height, metavar="WxH", help="output size (the server's choice)"
    )
    parser.add_argument(
        "--same",
        action="store_true",
        help="send the same prompt and picture in all edits, which the server encodes once (each has its own)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the result into FILE, as SVG")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, requests=1, steps=1)
    concurrency = parse_counts(arguments.concurrency, "--concurrency")
    edit = make_edit(arguments.image, arguments.prompt, arguments.steps, arguments.size)
    with connected(arguments.server) as (client, local):
        result = measure_load(client, edit, concurrency, requests=arguments.requests, same=arguments.same)
    result["local"] = local
    if arguments.plot is not None:
        draw_load(result, arguments.plot)
    finish(result, tables(result), footer(result), arguments.json)


def measure_load(
    client: Client,
    edit: Edit,
    concurrency: Sequence[int],
    *,
    requests: int,
    warmup: int = 1,
    same: bool = False,
) -> dict[str, Any]:
    """Sends `requests` edits at each concurrency, after `warmup` edits that do not count.

    Every edit has a seed of its own and, unless `same`, a prompt and pictures of its own, so that the server finds
    nothing of it in a cache.

    Raises:
        KontextError: an edit failed; a measurement with failed edits would be meaningless.
    """
    numbers = itertools.count()

    def prepared(count: int) -> list[Edit]:
        return [numbered(edit, number, same) for number in itertools.islice(numbers, count)]

    for each in prepared(warmup):
        client.edit(each)
    levels = []
    for callers in concurrency:
        seconds, latencies = closed_loop(client, prepared(max(requests, callers)), callers)
        levels.append(
            {
                "concurrency": callers,
                "requests": len(latencies),
                "per_second": round(len(latencies) / seconds, 4),
                **{f"p{p}": round(float(np.percentile(latencies, p)), 6) for p in PERCENTILES},
            }
        )
    return {
        "what": "serving",
        "prompt": edit.prompt,
        "references": len(edit.images),
        "steps": edit.steps,
        "size": edit.size,
        "same": same,
        "levels": levels,
        "machine": describe_machine(),
    }


def make_edit(image: Path | None, prompt: str | None, steps: int, size: tuple[int, int] | None) -> Edit:
    """The edit that every caller sends; a picture or prompt that is None comes from a generated scene."""
    if image is not None and prompt is not None:
        return Edit(prompt, [picture_file(image)], steps, size=size)
    picture, words = picture_and_prompt(image, prompt, size or SCENE)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Edit(words, [file.getvalue()], steps, size=size)


def numbered(edit: Edit, number: int, same: bool) -> Edit:
    """The edit with the seed `number`, which unless `same` is also in its prompt and in a pixel of each picture."""
    if same:
        return replace(edit, seed=number)
    images = [marked(image, number) for image in edit.images]
    return replace(edit, prompt=f"{number}: {edit.prompt}", images=images, seed=number)


def marked(image: bytes, number: int) -> bytes:
    """A picture's file as PNG with `number` in its first pixel."""
    picture, file = read_picture(io.BytesIO(image), "the picture").convert("RGB"), io.BytesIO()
    picture.putpixel((0, 0), tuple(number.to_bytes(3, "little")))
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def closed_loop(client: Client, edits: Sequence[Edit], callers: int) -> tuple[float, list[float]]:
    """(seconds for all edits, seconds of each)."""
    left, lock = iter(edits), threading.Lock()
    latencies: list[float] = []
    faults: list[BaseException] = []

    def call() -> None:
        while not faults:
            with lock:
                edit = next(left, None)
            if edit is None:
                return
            begin = time.perf_counter()
            try:
                client.edit(edit)
            except BaseException as fault:
                faults.append(fault)
                return
            latencies.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(callers)]
    begin = time.perf_counter()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        client.close()
        raise
    seconds = time.perf_counter() - begin
    if faults:
        fault = faults[0]
        raise fault if isinstance(fault, KontextError) else KontextError(f"a caller failed: {fault!r}")
    return seconds, latencies


def tables(result: dict[str, Any]) -> list[Table]:
    header = ["callers", "edits", "edits/s", *(f"p{p} [ms]" for p in PERCENTILES)]
    rows = [
        [
            str(level["concurrency"]),
            str(level["requests"]),
            f"{level['per_second']:.2f}",
            *(milliseconds(level[f"p{p}"]) for p in PERCENTILES),
        ]
        for level in result["levels"]
    ]
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    size = "the default size" if result["size"] is None else "{}x{}".format(*result["size"])
    steps = "the bundle's steps" if result["steps"] is None else f"{result['steps']} steps"
    where = "client and server on this machine" if result.get("local") else "the client's machine"
    prompts = "the same prompt and pictures in all edits; " if result.get("same") else ""
    return (
        f"{steps} at {size}, {result['references']} reference{'s' * (result['references'] != 1)}; {prompts}"
        f"each caller sends its next edit when its last one is answered. {where[0].upper()}{where[1:]}: "
        f"{machine_line(result['machine'])}"
    )
