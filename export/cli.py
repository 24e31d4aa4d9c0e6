"""`kontext-export [MODEL] -o OUT [--fp32|--fp16|--bf16] [--fp8] [--lora FILE]…`: a checkpoint in, a bundle out.

`kontext-export inspect FILE…` says what a checkpoint is, `kontext-export BUNDLE --triton REPO` lays out a bundle for
NVIDIA Triton Inference Server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KontextError

if TYPE_CHECKING:
    from ..model.checkpoint import Origin

EMBEDDED = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"
"""The model that comes with the package."""


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
        "--link-weights",
        action="store_true",
        help="leave weights that are stored in the right format in MODEL's own safetensors files, which the "
        "bundle then needs where they are now",
    )
    server = result.add_argument_group("NVIDIA Triton Inference Server")
    server.add_argument(
        "--triton",
        type=Path,
        metavar="REPO",
        help="write a model repository of the bundle; MODEL may then be a bundle, and -o is left out",
    )
    server.add_argument(
        "--triton-backend",
        choices=["python", "onnxruntime"],
        default="python",
        help="who runs the graphs: the runtime in the server's Python backend, or the server's ONNX Runtime backend "
        "(default: python)",
    )
    server.add_argument(
        "--triton-batch",
        type=from_1_to(64),
        metavar="N",
        help="pictures to sample together at most (default: by the model's picture size)",
    )
    server.add_argument(
        "--triton-instances",
        type=from_1_to(64),
        default=1,
        metavar="N",
        help="pipelines on each GPU, or on the CPU (default: 1)",
    )
    server.add_argument(
        "--triton-filters",
        type=Path,
        metavar="FILE",
        help="Python with the content filters input_filter and output_filter",
    )
    result.add_argument(
        "--force", action="store_true", help="replace OUT if it is a bundle, REPO if it is a repository"
    )
    result.add_argument("--quiet", action="store_true", help="no progress bars and no summary")
    return result


def from_1_to(largest: int) -> Callable[[str], int]:
    """An argument's type: a whole number from 1 to `largest`."""

    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {largest}")
        return int(text)

    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    inspecting = given[:1] == ["inspect"]
    options = None if inspecting else parser().parse_args(given)
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
    output = options.output.absolute()
    partial = output.with_name(output.name + ".partial")
    if not partial.exists():
        return ""
    return f"; {partial} keeps what is finished, and the same command goes on from there"


def run(options: argparse.Namespace) -> int:
    if options.output is None:
        if options.triton is None:
            raise KontextError("say where to: -o OUT writes a bundle, --triton REPO a model repository")
        lay_out(Path(options.model or EMBEDDED), options)
        return 0
    if (
        options.triton is not None
    ):  # an export takes long: what is in the way of the repository is said before
        from .triton_repository import check_filters, check_output

        check_output(options.triton, options.force)
        if options.triton_filters is not None:
            check_filters(options.triton_filters)
    export(options)
    if options.triton is not None:
        lay_out(options.output, options)
    return 0


def lay_out(bundle: Path, options: argparse.Namespace) -> None:
    """A bundle as a model repository."""
    from .triton_repository import Settings, write_repository

    if (bundle / "model_index.json").exists() or bundle.is_file():
        raise KontextError(
            f"{bundle} is a checkpoint: --triton takes a bundle, or -o OUT as well to make one"
        )
    settings = Settings(
        options.triton_backend, options.triton_batch, options.triton_instances, options.triton_filters
    )
    write_repository(bundle, options.triton, settings, force=options.force)
    if not options.quiet:
        print(f"wrote {options.triton}; its README.md says how to start it")


def export(options: argparse.Namespace) -> None:
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ..model.networks import NETWORKS
    from ..quant.recipe import choose
    from . import bundle
    from .summary import render

    summary = bundle.export(
        origin(options),
        options.output,
        lambda checkpoint: choose(
            tuple(NETWORKS), checkpoint.parameters(), options.compute, options.quantization
        ),
        force=options.force,
        show_progress=sys.stderr.isatty() and not options.quiet,
        link_weights=options.link_weights,
    )
    if not options.quiet:
        print(render(summary))


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
