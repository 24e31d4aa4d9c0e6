"""`kontext-export inspect FILE…`: what files and folders are and what an export would make of them."""

from __future__ import annotations

import argparse

from ...command import fail, local_path
from ...errors import KontextError
from ...interrupts import interrupt_in

SUMMARY = "say what a file is and how large its export would be"
DESCRIPTION = "Says what weight files are and how large their exports would be; reads only their headers."


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        type=local_path,
        metavar="FILE",
        help="weights, a LoRA, a diffusers folder or a bundle",
    )


def run(options: argparse.Namespace) -> int:
    """Prints a description of each file, with an empty line between them. One that is bad is a line on stderr, and the
    others are described all the same; returns 2 if there was one."""
    from .inspect_text import describe  # here: --help should not wait for PyTorch

    code = 0
    for number, path in enumerate(options.files):
        try:
            lines = list(describe(path))
        except KontextError as error:
            if interrupt_in(error):
                raise
            code = fail(str(error))
            continue
        print("\n".join([""] * bool(number) + lines), flush=True)
    return code
