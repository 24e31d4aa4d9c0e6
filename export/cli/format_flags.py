"""The command line's part about number formats: its flags, the recipe and the calibration that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import KontextError

if TYPE_CHECKING:
    from ...model.checkpoint import Checkpoint
    from ...quant.recipe import Recipe
    from ..calibration.samples import Samples


def add_format_flags(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_argument_group("number formats")
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
    formats.add_argument(
        "--kernels",
        metavar="SM[,SM]",
        help="compile the torch backend's kernels for these architectures (sm_80, sm_86, sm_89, sm_90, sm_100, sm_120) "
        "into the bundle, for machines without Triton",
    )


def rank(text: str) -> int | str:
    """A whole number up to 512, or "auto"."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) > 512:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a rank from 0 to 512")
    return int(text)


def chosen_recipe(options: argparse.Namespace, checkpoint: Checkpoint, calibrated: bool) -> Recipe:
    """The recipe that the flags stand for, or that of --recipe."""
    from ...model.networks import NETWORKS
    from ...quant.recipe import choose
    from ...quant.recipe_file import check_patterns, read_recipe
    from ..graph.interface import linear_weights

    networks, parameters = tuple(NETWORKS), checkpoint.parameters()
    if options.recipe is not None:
        compute = choose(networks, parameters, options.compute).compute
        recipe = read_recipe(options.recipe, compute, fixed=options.compute is not None)
        check_patterns(recipe, {name: linear_weights(name, checkpoint.config) for name in networks})
        return recipe
    return choose(
        networks,
        parameters,
        options.compute,
        options.quantization,
        chosen_rank(options),
        calibrated=calibrated,
        weight_only=options.weight_only,
        fp8_attention=options.fp8_attention,
    )


def chosen_rank(options: argparse.Namespace) -> int | None:
    """Of the low-rank branches; None for one by each weight's size."""
    from ...quant.options import BRANCHED

    if options.rank is None:
        return None if options.quantization in BRANCHED else 0
    return None if options.rank == "auto" else int(options.rank)


def calibration_samples(options: argparse.Namespace) -> Samples | None:
    """The edits to calibrate on, if any."""
    quantized = options.quantization is not None or options.recipe is not None or options.fit is not None
    if not quantized:
        given = {
            "calibrate": options.calibrate,
            "rank": options.rank,
            "weight-only": options.weight_only or None,
        }
        for name in (name for name, value in given.items() if value is not None):
            raise KontextError(f"--{name} goes with a quantized format, such as --fp8 or --int4")
    samples = calibration_folder(options.calibrate, options.model) if quantized else None
    if options.fp8_attention and (options.quantization != "fp8" or samples is None):
        raise KontextError(
            "--fp8-attention goes with --fp8 and a calibration: name a folder with --calibrate"
        )
    return samples


def calibration_folder(folder: str | None, model: str | None) -> Samples | None:
    """The edits in `folder`; without one scenes for the embedded model, where `model` is None."""
    from ..calibration.samples import read_samples, scene_samples

    if folder == "none":
        return None
    if folder is not None:
        return read_samples(Path(folder))
    return scene_samples() if model is None else None


def kernel_architectures(options: argparse.Namespace) -> tuple[int, ...]:
    """Those of --kernels, 89 for sm_89."""
    if options.kernels is None:
        return ()
    from ...kernels.compile import parse_architectures

    return parse_architectures(options.kernels)
