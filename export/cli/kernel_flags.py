"""The flag about the torch backend's kernels, and the build that it asks for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_kernel_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("compiled kernels").add_argument(
        "--kernels",
        metavar="SM[,SM]",
        help="add the torch backend's kernels, compiled for these architectures (sm_80, sm_86, sm_89, sm_90, sm_100, "
        "sm_120), for machines without Triton; without -o, MODEL is an existing bundle",
    )


def kernel_architectures(options: argparse.Namespace) -> tuple[int, ...]:
    """Those of --kernels, 89 for sm_89. Raises KontextError for one that has no kernels."""
    if options.kernels is None:
        return ()
    from ...kernels.compile import parse_architectures

    return parse_architectures(options.kernels)


def add_requested_kernels(folder: Path, options: argparse.Namespace) -> None:
    """Adds kernels to the bundle in `folder` and prints a line for each architecture."""
    from ..kernels import FOLDER, add_kernels

    shown = sys.stderr.isatty() and not options.quiet
    summary = add_kernels(folder, kernel_architectures(options), show_progress=shown)
    if options.quiet:
        return
    for architecture, size in summary.compiled.items():
        print(f"{FOLDER}/{architecture}: compiled ({size / 1e6:.1f} MB)")
    for architecture in summary.kept:
        print(f"{FOLDER}/{architecture}: is already there")
