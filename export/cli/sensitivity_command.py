"""`kontext-export sensitivity [MODEL] -o FILE [--plot FILE]`: which layers can be quantized, and to what."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import KontextError
from .format_flags import calibration_folder
from .source_flags import add_sources, origin


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="kontext-export sensitivity",
        description="Measures what quantizing each layer alone does to the denoiser's velocity and to the picture. "
        "Large models get an estimate from each layer's own error; the report says which.",
    )
    add_sources(result)
    result.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the report, as JSON"
    )
    result.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw it: layers by depth, a line for each format"
    )
    result.add_argument(
        "--formats",
        default="fp8,int8,int4",
        metavar="LIST",
        help="what to try each layer in; int4:0 is without a low-rank branch, int4:32 with one of rank 32 "
        "(default: fp8,int8,int4)",
    )
    result.add_argument(
        "--calibrate",
        metavar="DIR",
        help="the edits to measure on, and to quantize by, as in an export (default: scenes of its own for the "
        "embedded model; none: quantize by the weights alone)",
    )
    result.add_argument(
        "--estimate", action="store_true", help="do not run the model: estimate, as for large models"
    )
    result.add_argument("--quiet", action="store_true", help="no progress bars and no summary")
    return result


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = parser().parse_args(arguments)
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ...model.checkpoint import Checkpoint
    from ...quant.options import parse_options
    from ..calibration.calibrate import calibrate
    from ..calibration.sensitivity import LARGE, candidates, estimate, measure, write_report
    from ..exporter import read_tokenizers
    from ..progress import Progress
    from .sensitivity_plot import draw_sensitivity

    for path in (options.output, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise KontextError(f"{path.parent} is not a folder: make it first")
    formats = parse_options(options.formats)
    samples = calibration_folder(options.calibrate, options.model)
    calibrated = samples is not None and options.calibrate != "none"
    checkpoint = Checkpoint.open(origin(options))
    progress = Progress(sys.stderr.isatty() and not options.quiet)
    notes: list[str] = []
    if options.estimate or checkpoint.parameters() >= LARGE:
        statistics = None
        if samples is not None:
            tokenizers = read_tokenizers(checkpoint)
            statistics = calibrate(
                checkpoint, candidates(checkpoint), tokenizers, samples, progress, notes.append
            )
        report = estimate(checkpoint, formats, statistics, progress)
    else:
        from ..calibration.samples import scenes

        report = measure(
            checkpoint,
            formats,
            read_tokenizers(checkpoint),
            samples or scenes(),
            calibrated,
            progress,
            notes.append,
        )
    write_report(report, options.output)
    if options.plot is not None:
        draw_sensitivity(report, options.plot)
    if not options.quiet:
        from .sensitivity_text import render

        print("\n".join([*notes, render(report), f"written to {options.output}"]))
    return 0
