"""The command line's part about compiled engines: its flags, what they mean together, and what they do."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...errors import KontextError


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("compiled engines")
    group.add_argument(
        "--engine",
        choices=["rtx", "tensorrt"],
        help="compile the bundle's graphs with TensorRT for RTX (for GeForce and RTX cards, on any machine) or with "
        "TensorRT (for this machine's GPU); MODEL may then be a bundle, and -o is left out",
    )
    group.add_argument(
        "--target",
        metavar="SM,…",
        help="architectures to compile for, such as sm_86,sm_89,sm_120 (default: this machine's GPU)",
    )
    group.add_argument(
        "--engine-weights",
        choices=["stripped", "bound", "inside"],
        help="the bundle's weights are put in at load (stripped; builds only where there is a GPU), or are inputs of "
        "the engine (bound), or a copy is inside (default: stripped if this machine has a GPU, else bound, or inside "
        "where the number format is only fast so)",
    )
    group.add_argument(
        "--engine-batch", type=int, metavar="N", help="the largest batch that engines take (default: 4)"
    )
    group.add_argument(
        "--engines-from",
        type=Path,
        metavar="BUNDLE",
        help="take engines from there where they fit: an export with another LoRA has the same graphs",
    )


def check_together(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exits for flags that only --engine makes sense of."""
    if options.engine is None:
        for name in ("target", "engine_weights", "engine_batch", "engines_from"):
            if getattr(options, name) is not None:
                parser.error(f"--{name.replace('_', '-')} goes with --engine")


def check(options: argparse.Namespace) -> None:
    """What is sure to fail once the bundle is there is said before an export of an hour. Raises KontextError."""
    from ..engines.build import check_options, engine_options

    check_options(engine_options(options))
    if options.link_weights:
        raise KontextError("engines are built of a bundle's own weights: leave out --link-weights")
    if options.compute == "fp32" or (
        options.compute is None and options.model is None
    ):  # the embedded model's
        raise KontextError("TensorRT has attention in 16 bits only: export with --bf16 or --fp16")


def build(folder: Path, options: argparse.Namespace) -> None:
    """Builds the engines of the bundle in `folder`, and says what came of it."""
    from ..engines.build import build_engines, engine_options, rendered

    shown = sys.stderr.isatty() and not options.quiet
    summary = build_engines(folder, engine_options(options), show_progress=shown)
    if not options.quiet:
        print(rendered(summary))
