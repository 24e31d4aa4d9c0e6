"""`kontext-export inspect FILE…`: what files and folders are and what an export would make of them."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "say what a file is and how large its export would be"
DESCRIPTION = "Says what weight files are and how large their exports would be; reads only their headers."


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="weights, a LoRA, a diffusers folder or a bundle"
    )


def run(options: argparse.Namespace) -> int:
    """Prints a description of each file, with an empty line between them."""
    from .inspect_text import describe  # here: --help should not wait for PyTorch

    for number, path in enumerate(options.files):
        if number:
            print()
        for line in describe(path):
            print(line)
    return 0
