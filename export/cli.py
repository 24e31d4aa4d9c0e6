"""`kontext-export [MODEL] -o OUT [--fp32|--fp16|--bf16] [--fp8] [--force]`: a checkpoint in, a bundle out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import KontextError

EMBEDDED = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"
"""The model that comes with the package."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="kontext-export",
        description="Exports a FLUX.1 Kontext checkpoint as a bundle that runs without PyTorch.",
    )
    result.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="a diffusers folder (default: the embedded model)",
    )
    result.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the bundle's folder")
    compute = result.add_mutually_exclusive_group()
    for name in ("fp32", "fp16", "bf16"):
        compute.add_argument(
            f"--{name}",
            dest="compute",
            action="store_const",
            const=name,
            help=f"compute and store weights in {name}",
        )
    result.add_argument(
        "--fp8",
        action="store_true",
        help="store the blocks' weights as E4M3 with a scale per output channel; goes with one of the above, "
        "which then is what it computes in (default: bf16 from a billion parameters on, fp32 below)",
    )
    result.add_argument("--force", action="store_true", help="replace OUT if it is a bundle")
    result.add_argument("--quiet", action="store_true", help="no progress bars and no summary")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    partial = options.output.absolute().with_name(options.output.absolute().name + ".partial")
    try:
        return run(options)
    except KontextError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = (
            f"; {partial} keeps what is finished, and the same command goes on from there"
            if partial.exists()
            else ""
        )
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    model = options.model
    if model is None:
        model = EMBEDDED
        if not (model / "model_index.json").exists():
            raise KontextError("the embedded model is not part of this installation: name a diffusers folder")
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ..model.checkpoint import NETWORKS
    from ..quant.recipe import choose
    from .bundle import export
    from .summary import render

    summary = export(
        model,
        options.output,
        lambda checkpoint: choose(tuple(NETWORKS), checkpoint.parameters(), options.compute, options.fp8),
        force=options.force,
        show_progress=sys.stderr.isatty() and not options.quiet,
    )
    if not options.quiet:
        print(render(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
