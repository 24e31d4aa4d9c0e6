"""`kontext-export [MODEL] -o OUT [--fp32|--fp16|--bf16] [--fp8] [--lora FILE]…`: a checkpoint in, a bundle out.

`kontext-export inspect FILE…` says what a checkpoint is, `kontext-export sensitivity` how its layers take quantization,
`kontext-export BUNDLE --engine rtx` compiles a bundle's graphs, `kontext-export BUNDLE --triton REPO` lays it out for
NVIDIA Triton Inference Server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import KontextError
from . import engine_flags, plan_command, server_flags
from .format_flags import add_format_flags, calibration_samples, chosen_recipe, kernel_architectures
from .source_flags import add_sources, origin

ABOUT_EXPORTS = (
    "vae", "clip", "t5", "base", "lora", "lora_partial", "name", "steps", "compute", "quantization",
    "rank", "calibrate", "weight_only", "fp8_attention", "link_weights", "recipe", "fit", "kernels",
)  # fmt: skip
"""Options that say how a bundle is made; they go with --output."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="kontext-export",
        description="Exports a FLUX.1 Kontext checkpoint as a bundle that runs without PyTorch.",
        epilog="kontext-export inspect FILE… says what a file is and what it would become; kontext-export sensitivity "
        "measures what each layer's quantization does.",
    )
    add_sources(result)
    result.add_argument("-o", "--output", type=Path, metavar="OUT", help="the bundle's folder")
    add_format_flags(result)
    plan_command.add_flags(result)
    engine_flags.add_engine_flags(result)
    server_flags.add_server_flags(result)
    result.add_argument(
        "--force", action="store_true", help="replace OUT if it is a bundle, REPO if it is a repository"
    )
    result.add_argument("--quiet", action="store_true", help="no progress bars and no summary")
    return result


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, and in `bundle` the bundle that is there already if nothing is exported."""
    flags = parser()
    options = flags.parse_args(arguments)
    engine_flags.check_together(options, flags)
    options.bundle = bundle_of(options, flags)
    return options


def bundle_of(options: argparse.Namespace, flags: argparse.ArgumentParser) -> Path | None:
    """The bundle that only gets engines or a repository; exits for flags that come too late for it."""
    if (options.engine is None and options.triton is None) or options.output is not None:
        return None
    if options.model is None:
        return None
    strangers = [
        f"--{name.replace('_', '-')}"
        for name in ABOUT_EXPORTS
        if getattr(options, name, None) != flags.get_default(name)
    ]
    if strangers:
        flags.error(
            f"without -o, MODEL is a bundle that is there already, and {', '.join(strangers)} comes too late"
        )
    return Path(options.model)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given[:1] in (["inspect"], ["sensitivity"]) else None
    options = parse(given) if command is None else None
    try:
        if options is not None:
            return run(options)
        if command == "inspect":
            from .inspect import run as inspect

            return inspect(given[1:])
        from .sensitivity_command import run as sensitivity

        return sensitivity(given[1:])
    except KontextError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted{kept(options)}", file=sys.stderr)
        return 130


def kept(options: argparse.Namespace | None) -> str:
    """What an interrupted export leaves, in words."""
    if options is not None and options.bundle is not None and options.engine is not None:
        return "; engines that are finished are kept, and the same command goes on from there"
    if options is None or options.output is None:
        return ""
    output = options.output.absolute()
    partial = output.with_name(output.name + ".partial")
    if not partial.exists():
        return ""
    return f"; {partial} keeps what is finished, and the same command goes on from there"


def run(options: argparse.Namespace) -> int:
    if options.bundle is None and options.output is None and not options.plan_only:
        raise KontextError(
            "say where to: -o OUT writes a bundle, --triton REPO a model repository of one that is there"
        )
    if options.engine is not None:
        engine_flags.check(options)
    if options.triton is not None:
        server_flags.check(options)
    if options.bundle is None and not run_export(options):
        return 0
    if options.engine is not None:
        engine_flags.build(options.bundle or options.output, options)
    if options.triton is not None:
        server_flags.lay_out(options.bundle or options.output, options)
    return 0


def run_export(options: argparse.Namespace) -> bool:
    """Exports a bundle; False where only its plan was asked for."""
    plan_command.check_flags(options)
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ..exporter import export
    from .summary import render

    chosen, samples, kernels = origin(options), calibration_samples(options), kernel_architectures(options)
    plan = None
    if options.fit is not None:
        from .plan_text import render as render_plan

        plan = plan_command.plan_for(options, chosen)
        if options.plan_only or not options.quiet:
            print(render_plan(plan), flush=True)
        if options.plan_only:
            return False
    summary = export(
        chosen,
        options.output,
        lambda checkpoint: (
            plan.recipe if plan is not None else chosen_recipe(options, checkpoint, samples is not None)
        ),
        force=options.force,
        show_progress=sys.stderr.isatty() and not options.quiet,
        link_weights=options.link_weights,
        samples=samples,
        kernels=kernels,
        plan=None if plan is None else plan.as_json(),
    )
    if not options.quiet:
        print(render(summary))
    return True


if __name__ == "__main__":
    sys.exit(main())
