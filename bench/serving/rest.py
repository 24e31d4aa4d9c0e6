"""`kontext-bench serving BUNDLE --rest`: `kontext-serve` beside NVIDIA Triton Inference Server, and before it.

What the endpoint adds to an edit (`rest_front`), both servers under the same load, what the endpoint adds to the server
upstream, and how long its page takes to load.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...errors import KontextError
from ...runtime.bundle import Bundle
from ...runtime.server_client import Answer, Client, Edit, connect
from ..machine import describe_machine, gpus, machine_line
from ..report import Table, milliseconds
from ..timing import interleave
from . import rest_front
from .load import PERCENTILES, measure_load
from .local_server import serving
from .page_load import measure_page
from .rest_client import RestClient, rest_server
from .rest_front import quartiles

REST, TRITON, BEFORE = "kontext-serve", "Triton over HTTP", "kontext-serve before Triton"

GOALS = {"front": 0.005, "page": 0.2}
"""Seconds that the endpoint may add to an edit, and that its page may take."""


def measure_rest(
    bundle: Path,
    edit: Edit,
    concurrency: Sequence[int],
    *,
    requests: int,
    repeat: int,
    progress: bool = False,
) -> dict[str, Any]:
    """The whole measurement.

    Args:
        bundle: its folder.
        edit: what every caller sends, with one reference.
        concurrency: callers, in turn.
        requests: edits at each concurrency, at least.
        repeat: rounds of what is made in turn.

    Raises:
        KontextError: no server is installed, one does not start, or an edit fails.
    """
    device = "cuda" if gpus() else "cpu"
    result: dict[str, Any] = {
        "what": "serving-rest",
        "model": Bundle.open(bundle).name,
        "prompt": edit.prompt,
        "steps": edit.steps,
        "size": edit.size,
        "repeat": repeat,
        "goals": GOALS,
        "front": rest_front.measure_front(bundle, edit, repeat, device=device, progress=progress),
    }
    levels: dict[str, list[dict[str, Any]]] = {}
    with rest_server([str(bundle), "--device", device]) as url:
        result["page"] = measure_page(url)
        levels[REST] = measure_load(RestClient(url), edit, concurrency, requests=requests)["levels"]
    with serving(bundle) as server:
        triton = connect(server.http)
        levels[TRITON] = measure_load(triton, edit, concurrency, requests=requests)["levels"]
        with rest_server(["--upstream", server.http]) as url:
            before = RestClient(url)
            levels[BEFORE] = measure_load(before, edit, concurrency, requests=requests)["levels"]
            result["upstream"] = in_turn(
                {TRITON: triton, BEFORE: before}, replace(edit, steps=rest_front.STEPS), repeat, progress
            )
    return {**result, "levels": levels, "machine": describe_machine()}


def in_turn(sides: dict[str, Client], edit: Edit, repeat: int, progress: bool) -> dict[str, Any]:
    """Seconds of the same edit on each side, and how much more the second one takes."""

    def timed(client: Client) -> tuple[float, Answer]:
        began = time.perf_counter()
        answer = client.edit(edit)
        return time.perf_counter() - began, answer

    rounds = rest_front.WARMUP + repeat
    with tqdm(total=len(sides) * rounds, desc="upstream", unit="edit", disable=not progress) as bar:
        calls = {name: partial(timed, client) for name, client in sides.items()}
        found = interleave(calls, repeat, warmup=rest_front.WARMUP, done=bar.update)
    pictures = {answer.picture.tobytes() for each in found.values() for _, answer in each}
    if len(pictures) > 1:
        raise KontextError("the pictures of both servers are not the same: a comparison would be meaningless")
    first, second = ([seconds for seconds, _ in each] for each in found.values())
    return {
        "seconds": {name: quartiles(each) for name, each in zip(found, (first, second), strict=True)},
        "adds": quartiles(np.subtract(second, first)),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    return [added_table(result), parts_table(result), load_table(result)]


def added_table(result: dict[str, Any]) -> Table:
    """What the endpoint adds: to an edit, and to the server upstream; and the page."""
    rows = []
    for entry in result["front"]:
        kind = described(entry)
        taken, adds = entry["seconds"], entry["adds"]
        for name, words in ((rest_front.EDIT, "`Pipeline.edit`"), (rest_front.FILES, "file to file")):
            rows.append([f"REST beside {words}, {kind}", taken[name], taken[rest_front.REST], adds[name]])
    upstream = result["upstream"]
    rows.append(
        [f"{BEFORE}, {described(result['front'][0])}", *upstream["seconds"].values(), upstream["adds"]]
    )
    return Table(
        ["one edit of 1 step, one caller", "without [ms]", "with [ms]", "adds [ms]", "quartiles [ms]"],
        [
            [name, milliseconds(without["median"]), milliseconds(with_["median"]), *of_quartiles(adds)]
            for name, without, with_, adds in rows
        ],
    )


def parts_table(result: dict[str, Any]) -> Table:
    """Where the endpoint's time goes."""
    entries = result["front"]
    return Table(
        ["part of a request [ms]", *(described(entry) for entry in entries)],
        [[name, *(f"{entry['spans'][name] * 1000:.2f}" for entry in entries)] for name in rest_front.SPANS],
    )


def load_table(result: dict[str, Any]) -> Table:
    """Throughput and latency of each server by number of callers."""
    rows = [
        [
            f"{name}, {level['concurrency']}",
            str(level["requests"]),
            f"{level['per_second']:.2f}",
            *(milliseconds(level[f"p{p}"]) for p in PERCENTILES),
        ]
        for levels in zip(*result["levels"].values(), strict=True)
        for name, level in zip(result["levels"], levels, strict=True)
    ]
    return Table(["server, callers", "edits", "edits/s", *(f"p{p} [ms]" for p in PERCENTILES)], rows)


def described(entry: dict[str, Any]) -> str:
    size = f"{entry['bytes'] / 1e6:.1f} MB" if entry["bytes"] >= 1e6 else f"{entry['bytes'] / 1e3:.0f} KB"
    return "PNG of {}x{}, {}".format(*entry["size"], size)


def of_quartiles(values: dict[str, float]) -> list[str]:
    return [f"{values['median'] * 1000:.1f}", f"{values['q1'] * 1000:.1f} to {values['q3'] * 1000:.1f}"]


def footer(result: dict[str, Any]) -> str:
    page, goals = result["page"], result["goals"]
    if "skipped" in page:
        loaded = f"The page's load was not measured: {page['skipped']}"
    else:
        median, between = of_quartiles(page["seconds"])
        loaded = (
            f"The page is loaded with its {page['requests']} files in {median} ms (quartiles {between}; headless "
            f"Chromium, empty cache, {page['loads']} loads; goal: {goals['page'] * 1000:.0f} ms)"
        )
    size = "the default size" if result["size"] is None else "{}x{}".format(*result["size"])
    steps = "the bundle's steps" if result["steps"] is None else f"{result['steps']} steps"
    return (
        f"Goal: the endpoint adds at most {goals['front'] * 1000:.0f} ms to an edit. Added are the medians and "
        f"quartiles of the differences over {result['repeat']} rounds in turn; file to file is with reading and "
        f"writing PNG, as every program does it that has files. Under load each caller sends its next edit, {steps} at "
        f"{size}, when its last one is answered. {loaded}. Client and server on this machine: "
        f"{machine_line(result['machine'])}"
    )
