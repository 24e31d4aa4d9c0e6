"""`kontext-export [MODEL] -o OUT [--fp32|--fp16|--bf16] [--fp8] [--lora FILE]…`: a checkpoint in, a bundle out.

`kontext-export inspect FILE…` says what a checkpoint is, `kontext-export BUNDLE --engine rtx` compiles its graphs,
`kontext-export BUNDLE --triton REPO` lays it out for NVIDIA Triton Inference Server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KontextError
from . import engine_flags, server_flags
from .server_flags import from_1_to

if TYPE_CHECKING:
    from ..model.checkpoint import Origin
    from .samples import Samples

EMBEDDED = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"
"""The model that comes with the package."""

ABOUT_EXPORTS = (
    "vae", "clip", "t5", "base", "lora", "lora_partial", "name", "steps", "compute", "quantization",
    "rank", "calibrate", "weight_only", "fp8_attention", "link_weights",
)  # fmt: skip
"""Options that say how a bundle is made; they go with --output."""

BRANCHED = ("int4", "nvfp4")
"""Formats that get a low-rank branch unless told otherwise; bitsandbytes' kernels for NF4 know none."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="kontext-export",
        description="Exports a FLUX.1 Kontext checkpoint as a bundle that runs without PyTorch.",
        epilog="kontext-export inspect FILE… says what a file is and what it would become.",
    )
    result.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a diffusers folder, a .safetensors or .gguf file with the transformer (Black Forest Labs', diffusers' or "
        "ComfyUI's, fp8 too), or a hub id owner/name[@revision] (default: the embedded model)",
    )
    result.add_argument("-o", "--output", type=Path, metavar="OUT", help="the bundle's folder")
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
        type=from_1_to(1000),
        metavar="N",
        help="the bundle's default steps (default: the model's or the LoRA's)",
    )
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
        ("nf4", "as bitsandbytes' NF4, for its kernels; elsewhere they are unpacked first"),
        ("nvfp4", "as NVFP4 (E2M1 in blocks of 16), for Blackwell; ONNX Runtime has no kernel for it"),
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
        "--rank",
        type=rank,
        metavar="N",
        help="add a low-rank branch of N dimensions beside each quantized weight; auto: 64, 32 or 16, whatever costs "
        "at most a quarter of a bit per weight (default: auto for --int4 and --nvfp4, 0 otherwise)",
    )
    formats.add_argument(
        "--calibrate",
        metavar="DIR",
        help="quantize by what really goes through the model when it edits the pictures in DIR, each NAME.png with its "
        "instruction in NAME.txt (default: scenes of its own for the embedded model, otherwise none: every weight is "
        "rounded to the nearest; none: so for the embedded model too)",
    )
    formats.add_argument(
        "--weight-only",
        action="store_true",
        help="leave activations in the format that is computed in; without it --int8 rounds them to 8 bits at run time "
        "and --fp8 to E4M3 with scales from calibration, if there is one",
    )
    formats.add_argument(
        "--fp8-attention",
        action="store_true",
        help="with --fp8 and calibration: the attention's operands in E4M3 too, for TensorRT",
    )
    formats.add_argument(
        "--link-weights",
        action="store_true",
        help="leave weights that are stored in the right format in MODEL's own safetensors files, which the "
        "bundle then needs where they are now",
    )
    result.add_argument(
        "--kernels",
        metavar="SM[,SM]",
        help="compile the torch backend's kernels for these architectures (sm_80, sm_86, sm_89, sm_90, sm_100, sm_120) "
        "into the bundle, for machines without Triton",
    )
    engine_flags.add_engine_flags(result)
    server_flags.add_server_flags(result)
    result.add_argument(
        "--force", action="store_true", help="replace OUT if it is a bundle, REPO if it is a repository"
    )
    result.add_argument("--quiet", action="store_true", help="no progress bars and no summary")
    return result


def rank(text: str) -> int | str:
    """A whole number up to 512, or "auto"."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) > 512:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a rank from 0 to 512")
    return int(text)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, and in `bundle` the bundle that is there already if nothing is exported."""
    flags = parser()
    options = flags.parse_args(arguments)
    engine_flags.check_together(options, flags)
    options.bundle = bundle_of(options, flags)
    if options.bundle is None and options.output is None:
        flags.error(
            "say where to: -o OUT writes a bundle, --triton REPO a model repository of one that is there"
        )
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
    inspecting = given[:1] == ["inspect"]
    options = None if inspecting else parse(given)
    try:
        if options is not None:
            return run(options)
        from .inspect import run as inspect

        return inspect(given[1:])
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
    if options.bundle is not None:
        return "; engines that are finished are kept, and the same command goes on from there"
    output = options.output.absolute()
    partial = output.with_name(output.name + ".partial")
    if not partial.exists():
        return ""
    return f"; {partial} keeps what is finished, and the same command goes on from there"


def run(options: argparse.Namespace) -> int:
    if options.engine is not None:
        engine_flags.check(options)
    if options.triton is not None:
        server_flags.check(options)
    if options.bundle is None:
        run_export(options)
    if options.engine is not None:
        engine_flags.build(options.bundle or options.output, options)
    if options.triton is not None:
        server_flags.lay_out(options.bundle or options.output, options)
    return 0


def run_export(options: argparse.Namespace) -> None:
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ..model.networks import NETWORKS
    from ..quant.recipe import choose
    from .bundle import export
    from .summary import render

    samples = calibration_samples(options)
    if options.fp8_attention and (options.quantization != "fp8" or samples is None):
        raise KontextError(
            "--fp8-attention goes with --fp8 and a calibration: name a folder with --calibrate"
        )
    kernels: tuple[int, ...] = ()
    if options.kernels is not None:
        from ..kernels.compile import parse_architectures

        kernels = parse_architectures(options.kernels)
    summary = export(
        origin(options),
        options.output,
        lambda checkpoint: choose(
            tuple(NETWORKS),
            checkpoint.parameters(),
            options.compute,
            options.quantization,
            chosen_rank(options),
            calibrated=samples is not None,
            weight_only=options.weight_only,
            fp8_attention=options.fp8_attention,
        ),
        force=options.force,
        show_progress=sys.stderr.isatty() and not options.quiet,
        link_weights=options.link_weights,
        samples=samples,
        kernels=kernels,
    )
    if not options.quiet:
        print(render(summary))


def chosen_rank(options: argparse.Namespace) -> int | None:
    """Of the low-rank branches; None for one by each weight's size."""
    if options.rank is None:
        return None if options.quantization in BRANCHED else 0
    return None if options.rank == "auto" else int(options.rank)


def calibration_samples(options: argparse.Namespace) -> Samples | None:
    """The edits to calibrate on, if any."""
    from .samples import read_samples, scenes

    if options.quantization is None:
        given = {
            "calibrate": options.calibrate,
            "rank": options.rank,
            "weight-only": options.weight_only or None,
        }
        for name in (name for name, value in given.items() if value is not None):
            raise KontextError(f"--{name} goes with a quantized format, such as --fp8 or --int4")
        return None
    if options.calibrate == "none":
        return None
    if options.calibrate is not None:
        return read_samples(Path(options.calibrate))
    return scenes() if options.model is None else None


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
