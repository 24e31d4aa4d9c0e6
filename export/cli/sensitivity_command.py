"""`kontext-export sensitivity [MODEL] -o FILE [--plot FILE]`: which layers can be quantized, and to what."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...command import local_name
from ...errors import KontextError, one_line
from .format_flags import calibration_folder
from .source_flags import add_source_flags, origin_of

SUMMARY = "measure what quantizing each layer does to the picture"
DESCRIPTION = (
    "Measures what quantizing each layer alone does to the denoiser's velocity and to the picture. Large models get an "
    "estimate from each layer's own error; the report says which."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_source_flags(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the report, as JSON"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the report: layers by depth, a line for each format"
    )
    parser.add_argument(
        "--formats",
        default="fp8,int8,int4",
        metavar="LIST",
        help="formats to try each layer in; int4:0 is without a low-rank branch, int4:32 with one of rank 32, "
        "int8+int8 with inputs rounded too (default: fp8,int8,int4)",
    )
    parser.add_argument(
        "--calibrate",
        type=local_name,
        metavar="DIR",
        help="edits to measure on and to calibrate with, as in an export (default: for the embedded model built-in "
        "scenes; none: quantize without calibration)",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="estimate without running the model, as for large models"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars and no summary")


def run(options: argparse.Namespace) -> int:
    """Measures or estimates, writes the report, and draws it if asked to."""
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ...model.checkpoint import Checkpoint
    from ...quant.options import parse_options
    from ..bundle.tokenizer_files import read_tokenizers
    from ..calibration.calibrate import calibrate
    from ..calibration.samples import scene_samples
    from ..calibration.sensitivity import (
        MEASURED_PARAMETERS,
        estimate_sensitivity,
        measure_sensitivity,
        widest_recipe,
        write_report,
    )
    from ..progress import Progress
    from .sensitivity_plot import draw_sensitivity
    from .sensitivity_text import render_sensitivity
    from .summary import calibration_notes

    for path in (options.output, options.plot):
        if path is not None and path.is_dir():
            raise KontextError(f"{path} is a folder: name a file in it")
        if path is not None and not path.absolute().parent.is_dir():
            raise KontextError(f"{path.parent} is not a folder: make it first")
    formats = parse_options(options.formats)
    samples = calibration_folder(options.calibrate, options.model)
    checkpoint = Checkpoint.open(origin_of(options))
    progress = Progress(sys.stderr.isatty() and not options.quiet)
    statistics = None
    if options.estimate or checkpoint.parameters() >= MEASURED_PARAMETERS:
        if samples is not None:
            tokenizers = read_tokenizers(checkpoint)
            statistics = calibrate(checkpoint, widest_recipe(checkpoint), tokenizers, samples, progress)
        report = estimate_sensitivity(checkpoint, formats, statistics, progress)
    else:
        report = measure_sensitivity(
            checkpoint,
            formats,
            read_tokenizers(checkpoint),
            samples or scene_samples(),
            calibrated=samples is not None,
            progress=progress,
        )
    write_report(report, options.output)
    if options.plot is not None:
        draw_sensitivity(report, options.plot)
    if not options.quiet:
        notes = calibration_notes(statistics, () if samples is None else samples.skipped)
        if report.file is not None:
            notes.append(f"taken from {report.file}, a measurement of the same model and edits")
        print("\n".join([*notes, render_sensitivity(report), one_line(f"written to {options.output}")]))
    return 0
