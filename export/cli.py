"""`kontext-export [MODEL] -o OUT [--fp32|--fp16|--bf16] [--fp8] [--lora FILE]…`: a checkpoint in, a bundle out.

`kontext-export inspect FILE…` says what a checkpoint is, `kontext-export sensitivity` how its layers take quantization.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KontextError
from .planning_command import add_flags, check_flags, plan_for

if TYPE_CHECKING:
    from ..model.checkpoint import Checkpoint, Origin
    from ..quant.recipe import Recipe
    from .samples import Samples

EMBEDDED = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"
"""The model that comes with the package."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="kontext-export",
        description="Exports a FLUX.1 Kontext checkpoint as a bundle that runs without PyTorch.",
        epilog="kontext-export inspect FILE… says what a file is and what it would become; kontext-export sensitivity "
        "measures what each layer's quantization does.",
    )
    add_sources(result)
    result.add_argument("-o", "--output", type=Path, metavar="OUT", help="the bundle's folder")
    formats = result.add_argument_group("number formats")
    compute = formats.add_mutually_exclusive_group()
    for name in ("fp32", "fp16", "bf16"):
        compute.add_argument(
            f"--{name}",
            dest="compute",
            action="store_const",
            const=name,
            help=f"compute and store weights in {name}",
        )
    quantized = formats.add_mutually_exclusive_group()
    for name, stored in (
        ("fp8", "as E4M3 with a scale per output channel"),
        ("int8", "as INT8 with a scale per output channel"),
        ("int4", "as INT4 with a scale per output channel and 64 inputs"),
    ):
        quantized.add_argument(
            f"--{name}",
            dest="quantization",
            action="store_const",
            const=name,
            help=f"store the blocks' weights {stored}; goes with one of the above, which then is what it computes in "
            "(default: bf16 from a billion parameters on, fp32 below)",
        )
    formats.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="a JSON file of rules that say which layer is stored as what (docs/planning.md)",
    )
    formats.add_argument(
        "--rank",
        type=rank,
        metavar="N",
        help="add a low-rank branch of N dimensions beside each quantized weight; auto: 64, 32 or 16, whatever costs "
        "at most a quarter of a bit per weight (default: auto for --int4, 0 otherwise)",
    )
    formats.add_argument(
        "--calibrate",
        metavar="DIR",
        help="quantize by what really goes through the model when it edits the pictures in DIR, each NAME.png with its "
        "instruction in NAME.txt (default: scenes of its own for the embedded model, otherwise none: every weight is "
        "rounded to the nearest; none: so for the embedded model too)",
    )
    formats.add_argument(
        "--link-weights",
        action="store_true",
        help="leave weights that are stored in the right format in MODEL's own safetensors files, which the "
        "bundle then needs where they are now",
    )
    add_flags(result)
    result.add_argument("--force", action="store_true", help="replace OUT if it is a bundle")
    result.add_argument("--quiet", action="store_true", help="no progress bars and no summary")
    return result


def add_sources(result: argparse.ArgumentParser) -> None:
    """MODEL, and the options that say where it comes from."""
    result.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a diffusers folder, a .safetensors or .gguf file with the transformer (Black Forest Labs', diffusers' or "
        "ComfyUI's, fp8 too), or a hub id owner/name[@revision] (default: the embedded model)",
    )
    sources = result.add_argument_group("what MODEL lacks, or what goes before it")
    sources.add_argument("--vae", type=Path, metavar="FILE", help="the autoencoder (ae.safetensors)")
    sources.add_argument("--clip", type=Path, metavar="FILE", help="CLIP (clip_l.safetensors)")
    sources.add_argument("--t5", type=Path, metavar="FILE", help="T5 (t5xxl_fp16.safetensors, or a GGUF)")
    sources.add_argument(
        "--base",
        metavar="FOLDER",
        help="a diffusers folder, or a hub id, for all else that a single file lacks: tokenizers, configurations, "
        "weights (default: the folder that MODEL is in, if it is one)",
    )
    sources.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="fuse a LoRA, before quantization; may be given again (default weight: 1)",
    )
    sources.add_argument("--lora-partial", action="store_true", help="take LoRAs that fit only in part")
    sources.add_argument("--name", help="name of the model in the bundle")
    sources.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="the bundle's default steps (default: the model's or the LoRA's)",
    )


def positive(text: str) -> int:
    """Steps: a whole number from 1 to 1000."""
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps from 1 to 1000")
    return int(text)


def rank(text: str) -> int | None:
    """A whole number up to 512, or None for "auto"."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) > 512:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a rank from 0 to 512")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given[:1] in (["inspect"], ["sensitivity"]) else None
    options = parser().parse_args(given) if command is None else None
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
    if options is None or options.output is None:
        return ""
    output = options.output.absolute()
    partial = output.with_name(output.name + ".partial")
    if not partial.exists():
        return ""
    return f"; {partial} keeps what is finished, and the same command goes on from there"


def run(options: argparse.Namespace) -> int:
    check_flags(options)
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from .bundle import export
    from .summary import render

    chosen = origin(options)
    plan = None
    if options.fit is not None:
        from .planning_text import render as render_plan

        plan = plan_for(options, chosen)
        if options.plan_only or not options.quiet:
            print(render_plan(plan), flush=True)
        if options.plan_only:
            return 0
    summary = export(
        chosen,
        options.output,
        lambda checkpoint: plan.recipe if plan is not None else chosen_recipe(options, checkpoint),
        force=options.force,
        show_progress=sys.stderr.isatty() and not options.quiet,
        link_weights=options.link_weights,
        samples=calibration_samples(options),
        plan=None if plan is None else plan.as_json(),
    )
    if not options.quiet:
        print(render(summary))
    return 0


def chosen_recipe(options: argparse.Namespace, checkpoint: Checkpoint) -> Recipe:
    """The recipe that the flags stand for, or that of --recipe."""
    from ..model.networks import NETWORKS
    from ..quant.recipe import choose
    from ..quant.recipe_file import check_patterns, read_recipe
    from .graphs import linear_weights

    networks, parameters = tuple(NETWORKS), checkpoint.parameters()
    if options.recipe is not None:
        compute = choose(networks, parameters, options.compute).compute
        recipe = read_recipe(options.recipe, compute, fixed=options.compute is not None)
        check_patterns(recipe, {name: linear_weights(name, checkpoint.config) for name in networks})
        return recipe
    rank = (None if options.quantization == "int4" else 0) if options.rank is None else options.rank
    return choose(networks, parameters, options.compute, options.quantization, rank)


def calibration_samples(options: argparse.Namespace) -> Samples | None:
    """The edits to calibrate on, if any."""
    if options.quantization is None and options.recipe is None and options.fit is None:
        if options.calibrate is not None:
            raise KontextError("--calibrate goes with a quantized format: --fp8, --int8 or --int4")
        return None
    return calibration_folder(options.calibrate, options.model)


def calibration_folder(folder: str | None, model: str | None) -> Samples | None:
    """The edits in `folder`; without one scenes for the embedded model, where `model` is None."""
    from .samples import read_samples, scenes

    if folder == "none":
        return None
    if folder is not None:
        return read_samples(Path(folder))
    return scenes() if model is None else None


def origin(options: argparse.Namespace) -> Origin:
    """What the options say about where the model comes from; hub ids become folders of the hub's cache."""
    from ..model.checkpoint import Origin
    from ..model.lora import parse_request

    model = options.model
    if model is None:
        model = EMBEDDED
        if not (model / "model_index.json").exists():
            raise KontextError("the embedded model is not part of this installation: name a checkpoint")
    return Origin(
        located(model),
        {
            component: path
            for component, path in (
                ("vae", options.vae),
                ("text_encoder", options.clip),
                ("text_encoder_2", options.t5),
            )
            if path is not None
        },
        None if options.base is None else located(options.base),
        options.name,
        [parse_request(text) for text in options.lora],
        options.lora_partial,
        options.steps,
    )


def located(name: str | Path) -> Path:
    """A path as it is, a hub id's folder in the hub's cache."""
    from ..model.hub import download, is_hub_id

    return download(str(name)) if is_hub_id(str(name)) else Path(name)


if __name__ == "__main__":
    sys.exit(main())
