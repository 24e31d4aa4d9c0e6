"""Load on a server: concurrent callers in a closed loop, each sending its next edit when its last one is answered, or
in an open loop, where edits come at given times, whatever the server does."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import KontextError
from ...runtime.images import read_picture
from ...runtime.server_client import Client, Edit
from ..machine import describe_machine

PERCENTILES = (50, 95, 99)


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
                "samples": [round(each, 6) for each in latencies],
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


def closed_loop(
    client: Client, edits: Sequence[Edit], callers: int, stagger: float = 0.0
) -> tuple[float, list[float]]:
    """(seconds for all edits, seconds of each). Each caller begins `stagger` seconds after the one before."""
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
        for number, thread in enumerate(threads):
            time.sleep(max(0.0, begin + number * stagger - time.perf_counter()))
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        client.close()
        raise
    seconds = time.perf_counter() - begin
    raise_first(faults)
    return seconds, latencies


def open_loop(client: Client, edits: Sequence[Edit], times: Sequence[float]) -> tuple[float, list[float]]:
    """(seconds from the first arrival to the last answer, seconds of each edit from when it should be sent).

    An edit that is sent late, because this machine was busy, counts from its time: who waits to send, waits too.

    Args:
        client: of the server.
        edits: one for each time.
        times: of arrival in seconds, ascending.

    Raises:
        KontextError: an edit failed.
    """
    latencies = [0.0] * len(edits)
    faults: list[BaseException] = []
    begin = time.perf_counter()

    def call(number: int, edit: Edit, at: float) -> None:
        try:
            client.edit(edit)
            latencies[number] = time.perf_counter() - begin - at
        except BaseException as fault:
            faults.append(fault)

    threads = []
    try:
        for number, (edit, at) in enumerate(zip(edits, times, strict=True)):
            time.sleep(max(0.0, begin + at - time.perf_counter()))
            if faults:
                break
            threads.append(threading.Thread(target=call, args=(number, edit, float(at)), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        client.close()
        raise
    seconds = time.perf_counter() - begin - float(times[0])
    raise_first(faults)
    return seconds, latencies


def raise_first(faults: Sequence[BaseException]) -> None:
    """Raises the first of a loop's faults as a KontextError, if there is one."""
    if faults:
        fault = faults[0]
        raise fault if isinstance(fault, KontextError) else KontextError(f"a caller failed: {fault!r}")
