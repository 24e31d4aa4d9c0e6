"""`kontext-export digest BUNDLE`: checks every file of a bundle and prints the digest that pins it."""

from __future__ import annotations

import argparse
import sys

from ...command import local_path
from ...runtime.bundle import Bundle
from ...runtime.cli import verify

SUMMARY = "check a bundle's files and print the digest that pins it"
DESCRIPTION = (
    "Compares every file of a bundle with the SHA-256 in its manifest, then prints the bundle's digest, for "
    "--require-digest: the SHA-256 of the manifest."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=local_path, metavar="BUNDLE", help="a folder that kontext-export wrote"
    )
    parser.add_argument(
        "--quick", action="store_true", help="read only the manifest: the same digest, unchecked"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the digest alone on stdout, for scripts."""
    bundle = Bundle.open(options.bundle)
    if not options.quick:
        verify(bundle, sys.stderr.isatty())
    print(bundle.digest)
    return 0
