"""The flags about compiled engines, what they mean together, and the build that they ask for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...command import local_path
from ...errors import KontextError
from .dependent_flags import refuse_without

if TYPE_CHECKING:
    from ..engines.build import EngineOptions


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("compiled engines")
    group.add_argument(
        "--engine",
        choices=["rtx", "tensorrt"],
        help="compile the bundle's graphs with TensorRT for RTX (for GeForce and RTX cards, on any machine) or with "
        "TensorRT (for this machine's GPU); without -o, MODEL is an existing bundle",
    )
    group.add_argument(
        "--target",
        metavar="SM,…",
        help="GPU architectures to compile for, such as sm_86,sm_89,sm_120 (default: this machine's GPU)",
    )
    group.add_argument(
        "--engine-weights",
        choices=["stripped", "bound", "inside"],
        help="where engines get their weights: from the bundle, refitted at load (stripped; building needs a GPU) or "
        "as inputs (bound), or from a copy in the engine (inside) (default: stripped if this machine has a GPU, else "
        "bound, or inside for number formats that are only fast so)",
    )
    group.add_argument(
        "--engine-batch", type=int, metavar="N", help="largest batch of an engine (default: 4)"
    )
    group.add_argument(
        "--engines-from",
        type=local_path,
        metavar="BUNDLE",
        help="reuse that bundle's engines where they fit: an export with another LoRA has the same graphs",
    )


def check_engine_flags(options: argparse.Namespace) -> None:
    """Reports before an export of an hour what would fail after it. Raises KontextError."""
    if options.engine is None:
        refuse_without("--engine", options, ("target", "engine_weights", "engine_batch", "engines_from"))
        return
    from ..engines.build import resolve_options

    resolve_options(engine_options(options))
    if options.link_weights:
        raise KontextError("engines need the weights in the bundle itself: leave out --link-weights")
    embedded = options.model is None  # and so small that it computes in fp32 by default
    planned = getattr(options, "for") is not None  # and then in 16 bits
    if options.compute == "fp32" or (options.compute is None and embedded and not planned):
        raise KontextError("TensorRT's attention needs 16-bit inputs: export with --bf16 or --fp16")


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """What the flags ask for. Raises KontextError for an unknown architecture."""
    from ..engines.build import BATCH, EngineOptions, parse_targets

    return EngineOptions(
        options.engine,
        () if options.target is None else parse_targets(options.target),
        options.engine_weights,
        BATCH if options.engine_batch is None else options.engine_batch,
        options.engines_from,
    )


def build_requested_engines(folder: Path, options: argparse.Namespace) -> None:
    """Builds the engines of the bundle in `folder` and prints a summary."""
    from ..engines.build import build_engines
    from .engine_text import render_engines

    shown = sys.stderr.isatty() and not options.quiet
    summary = build_engines(folder, engine_options(options), show_progress=shown)
    if not options.quiet:
        print(render_engines(summary))
