"""`kontext-bench serving`: throughput and latency percentiles of a server against the number of callers, as Triton's
perf_analyzer reports them; with --rest, what `kontext-serve` adds (`rest`)."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...runtime.bundle import Bundle
from ...runtime.cli import parse_width_height
from ...runtime.sent_pictures import picture_file
from ...runtime.server.desk import default_batch
from ...runtime.server_client import Edit
from ..flags import at_least, parse_counts
from ..inputs import picture_and_prompt
from ..machine import machine_line
from ..report import Table, finish, milliseconds
from . import rest
from .load import PERCENTILES, measure_load
from .local_server import connected
from .plot import draw_load

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
    parser.add_argument(
        "--rest",
        action="store_true",
        help="measure kontext-serve beside Triton Inference Server, and what it adds (needs a BUNDLE)",
    )
    parser.add_argument(
        "--repeat", type=int, default=100, help="with --rest: rounds of what is made in turn (100)"
    )


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, requests=1, steps=1, repeat=1)
    concurrency = parse_counts(arguments.concurrency, "--concurrency")
    edit = make_edit(arguments.image, arguments.prompt, arguments.steps, arguments.size)
    if arguments.rest:
        run_rest(arguments, edit, concurrency)
        return
    with connected(arguments.server) as (client, local):
        result = measure_load(client, edit, concurrency, requests=arguments.requests, same=arguments.same)
    result["local"] = local
    result |= describe_served(Path(arguments.server)) if local else {"model": None, "batch": None}
    if arguments.plot is not None:
        draw_load(result, arguments.plot)
    finish(result, tables(result), footer(result), arguments.json)


def describe_served(bundle: Path) -> dict[str, Any]:
    """A bundle's model, and the most pictures that its server samples together."""
    opened = Bundle.open(bundle)
    return {"model": opened.name, "batch": default_batch(opened)}


def run_rest(arguments: argparse.Namespace, edit: Edit, concurrency: list[int]) -> None:
    if "://" in arguments.server:
        raise KontextError("--rest starts its servers itself: name a BUNDLE instead of a URL")
    for flag in ("same", "plot"):
        if getattr(arguments, flag):
            raise KontextError(f"--{flag} does not go with --rest")
    result = rest.measure_rest(
        Path(arguments.server),
        edit,
        concurrency,
        requests=arguments.requests,
        repeat=arguments.repeat,
        progress=sys.stderr.isatty(),
    )
    finish(result, rest.tables(result), rest.footer(result), arguments.json)


def make_edit(image: Path | None, prompt: str | None, steps: int, size: tuple[int, int] | None) -> Edit:
    """The edit that every caller sends; a picture or prompt that is None comes from a generated scene."""
    if image is not None and prompt is not None:
        return Edit(prompt, [picture_file(image)], steps, size=size)
    picture, words = picture_and_prompt(image, prompt, size or SCENE)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Edit(words, [file.getvalue()], steps, size=size)


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
