"""Which cards bundles run on: two edits with the torch backend, without and with --offload, in limited GPU memory.

PyTorch's allocator is limited to each card's memory, less the planner's estimate for the CUDA context, which was not
measured. Needs a GPU, or `kontext-bench fake-gpu`.
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
from ...runtime.backends.options import TorchOptions
from ...runtime.backends.torch.backend import TorchBackend
from ...runtime.bundle import Bundle
from ...runtime.cli import parse_width_height
from ...runtime.pipeline import Pipeline
from ...runtime.units import parse_bytes
from ..machine import describe_machine, machine_line
from ..report import Table, finish

MEMORY = "24GB,16GB,12GB,8GB,6GB,4GB"
MODES = {"resident": False, "--offload": True}
"""Where the transformer's weights are: on the GPU, or in host memory."""

PROMPTS = ("make the circle red", "make it night")
"""Two, because the second edit starts with the transformer on the GPU."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--memory", default=MEMORY, metavar="SIZE,…", help=f"cards ({MEMORY})")
    parser.add_argument(
        "--size",
        type=parse_width_height,
        default=(1024, 1024),
        metavar="WxH",
        help="output and reference (1024x1024)",
    )


def run(arguments: argparse.Namespace) -> None:
    cards = [card.strip() for card in arguments.memory.split(",")]
    runs = len(cards) * len(arguments.bundle) * len(MODES)
    rows = list(
        tqdm(
            measure_cards(arguments.bundle, cards, arguments.size),
            total=runs,
            unit="run",
            disable=not sys.stderr.isatty(),
        )
    )
    result = {
        "what": "vram-fit",
        "size": list(arguments.size),
        "gpu": torch.cuda.get_device_name(),
        "rows": rows,
        "machine": describe_machine(),
    }
    finish(result, tables(result), footer(result), arguments.json)


def measure_edits(bundle: Path, offload: bool, size: tuple[int, int]) -> dict[str, Any]:
    """Peak of allocated bytes over two edits, and whether a picture was decoded in tiles; or why they do not fit."""
    torch.cuda.reset_peak_memory_stats()
    opened = Bundle.open(bundle)
    pipeline = Pipeline(opened, TorchBackend(opened, "cuda", TorchOptions(offload=offload)))
    picture = Image.effect_noise(size, 50).convert("RGB")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for prompt in PROMPTS:
                pipeline.edit(picture, prompt, size=size, steps=2)
    except KontextError as fault:
        if "out of GPU memory" not in str(fault):
            raise
        return {"refused": str(fault)}
    tiled = any("decoded in tiles" in str(each.message) for each in caught)
    return {"peak": torch.cuda.max_memory_allocated(), "tiled": tiled}


def measure_cards(
    bundles: Sequence[Path], cards: Sequence[str], size: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """One entry per card, bundle and mode.

    Raises:
        KontextError: there is no GPU, or it has less memory than one of the cards.
    """
    if not torch.cuda.is_available():
        raise KontextError(
            "there is no GPU: run this with `kontext-bench fake-gpu -- kontext-bench vram-fit …`"
        )
    total = torch.cuda.get_device_properties(0).total_memory
    for card in cards:
        limit = parse_bytes(card, "--memory") - CUDA.overhead
        if limit > total:
            raise KontextError(f"--memory {card} is more than this GPU has ({total / 1e9:.1f} GB)")
        for bundle in bundles:
            for mode, offload in MODES.items():
                torch.cuda.set_per_process_memory_fraction(limit / total)
                entry = measure_edits(bundle, offload, size)
                yield {"bundle": bundle.name, "card": card, "mode": mode, **entry}
                gc.collect()
                torch.cuda.empty_cache()


def outcome(row: dict[str, Any]) -> str:
    """A cell of the table: the peak, or no."""
    if "refused" in row:
        return "no"
    return f"{row['peak'] / 1e9:.1f} GB{' (tiles)' if row['tiled'] else ''}"


def tables(result: dict[str, Any]) -> list[Table]:
    """A row per card, a column per bundle and mode."""
    rows = result["rows"]
    columns = list(dict.fromkeys((row["bundle"], row["mode"]) for row in rows))
    cells = {(row["card"], row["bundle"], row["mode"]): outcome(row) for row in rows}
    cards = list(dict.fromkeys(row["card"] for row in rows))
    header = ["card", *(f"{bundle}, {mode}" for bundle, mode in columns)]
    return [
        Table(header, [[card, *(cells.get((card, *column), "") for column in columns)] for card in cards])
    ]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    return (
        f"{width}x{height}, one reference, two edits; {result['gpu']} limited to each size. "
        f"{machine_line(result['machine'])}"
    )
