"""What fits on which card: `python -m kontext.bench.memory.vram_fit BUNDLE… --memory 24GB,12GB,8GB --json FILE`.

Two edits one after the other with the torch backend, as it runs by itself and with --offload, on this GPU cut down to
each size. Memory is what PyTorch's allocator holds; that of the driver and its libraries, which nobody here has
measured, is taken off first at the planner's estimate. Runs on a GPU, or on one that computes nothing
(`kontext.bench.fake_gpu`).
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ...errors import KontextError
from ...quant.memory import CUDA
from ...runtime.backends.torch.backend import Options, TorchBackend
from ...runtime.bundle import Bundle
from ...runtime.cli import parse_width_height
from ...runtime.pipeline import Pipeline
from ...runtime.units import parse_bytes
from ..command_line import exit_code, module_parser, show
from ..machine import describe, one_line
from ..report import Table, replace_section, write_json

MEMORY = "24GB,16GB,12GB,8GB,6GB,4GB"
WAYS = {"resident": False, "--offload": True}
PROMPTS = ("make the circle red", "make it night")
"""Two, since the second edit finds the transformer on the card."""


def edits(bundle: Path, offload: bool, size: tuple[int, int]) -> dict[str, Any]:
    """Peak of allocated bytes over two edits, and whether a picture was decoded in tiles; or why they do not fit."""
    torch.cuda.reset_peak_memory_stats()
    opened = Bundle.open(bundle)
    pipeline = Pipeline(opened, TorchBackend(opened, "cuda", Options(offload=offload)))
    picture = Image.effect_noise(size, 50).convert("RGB")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for prompt in PROMPTS:
                pipeline.edit(picture, prompt, size=size, steps=2)
    except KontextError as fault:
        if "has no room" not in str(fault):
            raise
        return {"refused": str(fault)}
    tiled = any("decoded in tiles" in str(each.message) for each in told)
    return {"peak": torch.cuda.max_memory_allocated(), "tiled": tiled}


def measure(bundles: Sequence[Path], cards: Sequence[str], size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """One row for each bundle, card and way.

    Raises:
        KontextError: no GPU, or one that is smaller than a card that is asked for.
    """
    if not torch.cuda.is_available():
        raise KontextError(
            "there is no GPU: run this under `python -m kontext.bench.fake_gpu`, which computes nothing"
        )
    total = torch.cuda.get_device_properties(0).total_memory
    for card in cards:
        room = parse_bytes(card) - CUDA.overhead
        if room > total:
            raise KontextError(f"--memory {card} is more than this GPU has ({total / 1e9:.1f} GB)")
        for bundle in bundles:
            for way, offload in WAYS.items():
                torch.cuda.set_per_process_memory_fraction(room / total)
                yield {"bundle": bundle.name, "card": card, "way": way, **edits(bundle, offload, size)}
                gc.collect()
                torch.cuda.empty_cache()


def outcome(row: dict[str, Any]) -> str:
    """A cell of the table."""
    if "refused" in row:
        return "no"
    return f"{row['peak'] / 1e9:.1f} GB{' (tiles)' if row['tiled'] else ''}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each card, a column for each bundle and way."""
    columns = list(dict.fromkeys((row["bundle"], row["way"]) for row in rows))
    found = {(row["card"], row["bundle"], row["way"]): outcome(row) for row in rows}
    cards = list(dict.fromkeys(row["card"] for row in rows))
    return Table(
        ["card", *(f"{bundle}, {way}" for bundle, way in columns)],
        [[card, *(found.get((card, *column), "") for column in columns)] for card in cards],
    )


def run(options: argparse.Namespace) -> None:
    cards = [card.strip() for card in options.memory.split(",")]
    size = parse_width_height(options.size)
    bar = tqdm(
        total=len(cards) * len(options.bundle) * len(WAYS), unit="run", disable=not sys.stderr.isatty()
    )
    rows = []
    with bar:
        for row in measure(options.bundle, cards, size):
            rows.append(row)
            bar.update()
    gpu = torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "what": "room",
        "size": list(size),
        "gpu": gpu,
        "rows": rows,
        "machine": describe(),
    }
    if options.json is not None:
        write_json(options.json, result)
    footer = (
        f"{options.size}, one reference, two edits; {gpu} cut down to each size. "
        f"{one_line(result['machine'])}"
    )
    if options.page is not None:
        replace_section(options.page, "room", f"{table(rows).markdown()}\n\n{footer}")
    show([table(rows)], footer)


def main(arguments: list[str] | None = None) -> int:
    parser = module_parser("room", __doc__)
    parser.add_argument("bundle", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--memory", default=MEMORY, metavar="SIZES", help=f"cards (default: {MEMORY})")
    parser.add_argument("--size", default="1024x1024", metavar="WxH", help="of picture and reference")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="replace the section `room` of this document"
    )
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
