"""`--to LAYOUT`: the flag, what goes with it, and the export that it asks for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from ...errors import KontextError
from ..layouts.layout import Layout
from ..layouts.registry import LAYOUTS, describe_layouts, parse_layout
from .format_flags import calibration_folder
from .source_flags import origin_of


def add_layout_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        type=layout_and_variant,
        metavar="LAYOUT",
        help=f"write MODEL, with its LoRAs fused, for other programs instead of a bundle: {describe_layouts()}",
    )


def layout_and_variant(text: str) -> tuple[Layout, str]:
    """An argument's type: as `parse_layout`."""
    try:
        return parse_layout(text)
    except KontextError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_layout_flags(options: argparse.Namespace, for_bundles: Iterable[str]) -> None:
    """Raises KontextError for what the layout of --to cannot hold, and for options that mean nothing for it: those of
    `for_bundles` that the layout does not take."""
    if options.to is None:
        return
    layout, variant = options.to
    for name in for_bundles:
        if name not in layout.takes and getattr(options, name) not in (None, False):
            raise KontextError(
                f"--{name.replace('_', '-')} is for bundles: it means nothing with --to {layout.name}"
            )
    layout.check_format(variant, options.compute, options.quantization, LAYOUTS)
    if options.calibrate not in (None, "none") and variant not in layout.calibrated:
        calibrated = ", ".join(f"{layout.name}:{each}" for each in layout.calibrated)
        raise KontextError(f"--calibrate only applies with --to {calibrated}")
    if options.output is None:
        what = f"a file whose name ends in {layout.suffix}" if layout.is_file else "a folder"
        raise KontextError(f"-o OUT is missing: {what} to write")


def export_to_layout(options: argparse.Namespace) -> None:
    """Writes MODEL in the layout of --to, as OUT, and prints a summary."""
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ...model.checkpoint import ALL, Checkpoint
    from ...model.networks import NETWORKS
    from ...quant.recipe import choose_recipe
    from ..layouts.write import check_layout_output, write_layout
    from .layout_text import render_layout_summary

    layout, variant = options.to
    check_layout_output(layout, options.output, options.force)  # before a download
    samples = calibration_folder(options.calibrate, options.model) if variant in layout.calibrated else None
    needed = layout.components if samples is None else ALL  # a calibration edits pictures
    checkpoint = Checkpoint.open(origin_of(options), needed)
    recipe = choose_recipe(
        tuple(NETWORKS),
        checkpoint.parameters(),
        layout.computes.get(variant, options.compute),
        options.quantization,
        weight_only=True,
    )
    summary = write_layout(
        checkpoint,
        layout,
        recipe,
        options.output,
        variant=variant,
        samples=samples,
        force=options.force,
        show_progress=sys.stderr.isatty() and not options.quiet,
    )
    if not options.quiet:
        print(render_layout_summary(summary))
