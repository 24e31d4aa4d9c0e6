"""`kontext-export lora LORA [MODEL] -o FILE`: makes a LoRA ready for bundles that were exported with --lora-slots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...command import local_path
from ...errors import KontextError, one_line
from .source_flags import add_source_flags, origin_of, whole_number

SUMMARY = "make a LoRA ready for edits with a bundle that has slots"
DESCRIPTION = (
    "Writes one file from a LoRA of any trainer and style, for kontext-edit BUNDLE --lora FILE[:WEIGHT] with bundles "
    "of MODEL that were exported with --lora-slots. Low-rank changes are kept exactly, others become the nearest of "
    "--rank."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=local_path, metavar="LORA", help="a .safetensors file, or its folder")
    add_source_flags(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write, .safetensors"
    )
    parser.add_argument(
        "--rank",
        type=whole_number(1, 1024),
        metavar="RANK",
        help="the highest rank; changes of a higher one become the nearest (default: the LoRA's own; 32 for LoKr, "
        "LoHa, DoRA and changes in full)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")


def run(options: argparse.Namespace) -> int:
    if options.output.suffix != ".safetensors":
        raise KontextError(f"-o {options.output}: name a .safetensors file")
    if not options.output.absolute().parent.is_dir():
        raise KontextError(f"{options.output.absolute().parent} is not a folder: create it first")
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ...model.checkpoint import Checkpoint
    from ..lora.prepare import describe_errors, prepare_lora

    done = prepare_lora(
        Checkpoint.open(origin_of(options)),
        options.file,
        options.output,
        rank=options.rank,
        partial=options.lora_partial,
        show_progress=sys.stderr.isatty() and not options.quiet,
    )
    if options.quiet:
        return 0
    size = done.output.stat().st_size / 1e6
    print(one_line(f"wrote {done.output}: rank {done.rank}, {done.slots} linears, {size:.1f} MB"))
    if done.errors:
        print(f"  {describe_errors(done.errors)}")
    if done.left_out:
        print(
            f"  left out, since no slot is for them: {', '.join(done.left_out[:3])} ({len(done.left_out)} in all)"
        )
    for note in done.notes:
        print(f"  {note}")
    return 0
