"""`kontext-export [export] [MODEL] -o OUT`: exports a checkpoint; builds engines and model repositories of bundles."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...bundle_folder import is_bundle, refuse_bundle
from ...errors import KontextError
from ...runtime.reference_options import REFERENCE_METHODS
from .card_flags import add_card_flags, card_of, card_plan, check_card_flags
from .engine_flags import add_engine_flags, build_requested_engines, check_engine_flags
from .format_flags import add_format_flags, calibration_samples, chosen_recipe
from .kernel_flags import add_kernel_flags, add_requested_kernels, kernel_architectures
from .layout_flags import add_layout_flags, check_layout_flags, export_to_layout
from .plan_flags import add_plan_flags, check_plan_flags, plan_for
from .server_flags import add_server_flags, check_server_flags, write_requested_repository
from .source_flags import add_source_flags, origin_of, whole_number

if TYPE_CHECKING:
    from ...model.checkpoint import Checkpoint
    from ...quant.recipe import Recipe

SUMMARY = "export a checkpoint as a bundle"
DESCRIPTION = "Exports a FLUX.1 Kontext checkpoint as a bundle that runs without PyTorch."

EXPORT_ONLY = (
    "vae", "clip", "t5", "base", "variant", "lora", "lora_partial", "name", "steps", "max_sequence_length",
    "reference_method", "lora_slots", "compute", "quantization", "rank", "calibrate", "weight_only", "static_inputs",
    "activations", "fp8_attention", "link_weights", "recipe", "fit", "for", "to",
)  # fmt: skip
"""Options that decide what a bundle holds; none applies to an existing bundle."""

FOR_BUNDLES = ("kernels", "engine", "triton")
"""Options that need no -o where MODEL is an existing bundle."""

FLAG_IS_VALUE = ("compute", "quantization")
"""Options whose value is the name of the flag that set them: --bf16, --fp8."""

FOR_LAYOUTS = (
    "vae", "clip", "t5", "base", "variant", "lora", "lora_partial", "compute", "quantization", "to",
)  # fmt: skip
"""Options of an export that mean something with any --to."""

FOR_RUNS = (
    "kernels", "engine", "triton", "plan_only", "gpu", "sensitivity", "formats", "size", "references", "batch",
    "fidelity",
)  # fmt: skip
"""Options about where bundles run."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_source_flags(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="the bundle's folder, or what --to writes"
    )
    add_layout_flags(parser)
    parser.add_argument(
        "--reference-method",
        choices=REFERENCE_METHODS,
        help="how the bundle's edits place several references (default: offset for FLUX.1 Kontext's shape, index for "
        "any other)",
    )
    parser.add_argument(
        "--lora-slots",
        type=whole_number(1, 1024),
        metavar="RANK",
        help="leave room for LoRAs that edits bring (kontext-edit --lora), of this rank in all",
    )
    add_format_flags(parser)
    add_plan_flags(parser)
    add_card_flags(parser)
    add_kernel_flags(parser)
    add_engine_flags(parser)
    add_server_flags(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace OUT if it is a bundle or what --to wrote, REPO if it is a repository",
    )
    parser.add_argument(
        "--require-digest",
        metavar="sha256:…",
        help="with an existing bundle as MODEL: check its files, and refuse one with another digest",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars and no summary")


def run(options: argparse.Namespace) -> int:
    """Exports a checkpoint or adds kernels, builds engines and writes a model repository, in this order, as far as
    requested."""
    check_layout_flags(options, [name for name in (*EXPORT_ONLY, *FOR_RUNS) if name not in FOR_LAYOUTS])
    bundle = existing_bundle(options)
    check_card_flags(options)
    check_engine_flags(options)
    check_server_flags(options)
    if bundle is None:
        if options.require_digest is not None:
            raise KontextError("--require-digest needs an existing bundle as MODEL")
        if options.to is not None:
            export_to_layout(options)
            return 0
        if not export_bundle(options):
            return 0
        bundle = options.output
    else:
        check_required_digest(bundle, options)
        if options.kernels is not None:
            add_requested_kernels(bundle, options)
    if options.engine is not None:
        build_requested_engines(bundle, options)
    if not options.quiet and (options.engine is not None or (options.output is None and options.kernels)):
        print_digest(bundle)  # what was added has changed it
    if options.triton is not None:
        write_requested_repository(bundle, options)
    return 0


def existing_bundle(options: argparse.Namespace) -> Path | None:
    """MODEL if it is a bundle that gets kernels or engines, or becomes a model repository; None if a checkpoint is
    exported.

    Raises:
        KontextError: there is nothing to write to, or flags of an export are given with a bundle.
    """
    if options.output is not None or options.plan_only:
        return None
    wanted = [f"--{name}" for name in FOR_BUNDLES if getattr(options, name) is not None]
    if not wanted:
        if options.model is not None:
            refuse_bundle(Path(options.model))
        raise KontextError("-o OUT is missing: the folder to write the bundle to")
    if options.model is None:
        raise KontextError(f"{wanted[0]} needs a bundle: name one as MODEL, or export one with -o OUT")
    model = Path(options.model)
    if not is_bundle(model):
        if not model.exists():
            raise KontextError(f"{model} does not exist")
        raise KontextError(f"{model} is not a bundle: add -o OUT to export a checkpoint")
    flags = [
        flag_of(name, options) for name in EXPORT_ONLY if getattr(options, name) not in (None, False, [])
    ]
    if flags:
        applies = "applies" if len(flags) == 1 else "apply"
        raise KontextError(
            f"MODEL is an existing bundle; {', '.join(flags)} only {applies} when exporting a checkpoint (with -o)"
        )
    return model


def check_required_digest(bundle: Path, options: argparse.Namespace) -> None:
    """Raises KontextError if `bundle` is not the one of --require-digest, or is damaged."""
    if options.require_digest is None:
        return
    from ...runtime.bundle import Bundle
    from ...runtime.cli import verify

    opened = Bundle.open(bundle, digest=options.require_digest)
    verify(opened, sys.stderr.isatty() and not options.quiet)


def print_digest(bundle: Path) -> None:
    from ...runtime.bundle import Bundle
    from .summary import digest_line

    print(digest_line(Bundle.open(bundle).digest))


def flag_of(name: str, options: argparse.Namespace) -> str:
    """The flag that set an option."""
    return f"--{getattr(options, name) if name in FLAG_IS_VALUE else name.replace('_', '-')}"


def export_bundle(options: argparse.Namespace) -> bool:
    """Exports MODEL as OUT; False if --plan-only ends it."""
    check_plan_flags(options)
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ...model.checkpoint import Checkpoint
    from ..bundle.folder_kind import BUNDLE
    from ..bundle.output_folder import check_output
    from ..exporter import export
    from .summary import render_summary

    if not options.plan_only:
        check_output(options.output, BUNDLE, options.force)  # before a download
    samples, kernels = calibration_samples(options), kernel_architectures(options)
    checkpoint = Checkpoint.open(origin_of(options))
    recipe, plan, text, run = planned(options, checkpoint, samples is not None)
    if text and (options.plan_only or not options.quiet):
        print(text, flush=True)
    if options.plan_only:
        return False
    summary = export(
        checkpoint,
        recipe,
        options.output,
        samples=samples,
        link_weights=options.link_weights,
        kernels=kernels,
        plan=plan,
        reference_method=options.reference_method,
        lora_slots=options.lora_slots or 0,
        force=options.force,
        show_progress=sys.stderr.isatty() and not options.quiet,
    )
    if not options.quiet:
        print(render_summary(summary, run))
    return True


def planned(
    options: argparse.Namespace, checkpoint: Checkpoint, calibrated: bool
) -> tuple[Recipe, dict[str, Any] | None, str, str]:
    """The recipe to export by; where a plan chooses it, what the manifest has of that plan, its text, and the flags of
    kontext-edit that it counts on.

    Raises:
        KontextError: nothing fits, or the recipe needs a calibration that there will not be.
    """
    if card_of(options) is not None:
        from .card_text import render_card_plan

        found = card_plan(options, checkpoint.config, calibrated)
        return found.plan.recipe, found.as_json(), render_card_plan(found), found.run
    if options.fit is None:
        return chosen_recipe(options, checkpoint, calibrated), None, "", ""
    from .plan_text import render_plan

    plan = plan_for(options, checkpoint.config)
    if not calibrated and not options.plan_only and any(rule.needs_calibration for rule in plan.recipe.rules):
        raise KontextError(
            "inputs are rounded with scales from a calibration: name a folder with --calibrate, or --formats without +"
        )
    return plan.recipe, plan.as_json(), render_plan(plan), ""


def progress_kept(options: argparse.Namespace) -> str:
    """What an interrupted command leaves to resume from, as the end of a sentence; "" if nothing."""
    output, engine, kernels = (getattr(options, name, None) for name in ("output", "engine", "kernels"))
    if output is not None:
        from ..bundle.output_folder import partial_folder

        partial = partial_folder(output.absolute())
        return f"; the same command resumes from {partial}" if partial.exists() else ""
    finished = [name for name in ("kernels" if kernels else "", "engines" if engine else "") if name]
    return f"; finished {' and '.join(finished)} are kept, and the same command resumes" if finished else ""
