"""Flags for number formats, and the recipe and calibration that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...command import local_name, local_path
from ...errors import KontextError
from ...quant.formats import FORMATS
from ...quant.formats.base import InputRounding
from ...quant.formats.fp8 import FP8

if TYPE_CHECKING:
    from ...model.checkpoint import Checkpoint
    from ...quant.recipe import Recipe
    from ..edit_sets.samples import Samples


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
    flagged = [format for format in FORMATS.values() if format.flag_help]
    for format in flagged:
        quantized.add_argument(
            f"--{format.name}",
            dest="quantization",
            action="store_const",
            const=format.name,
            help=f"store the blocks' weights {format.flag_help}; add one of the above to set what it computes in "
            "(default: bf16 from a billion parameters on, fp32 below)",
        )
    unpacked = " or ".join(f"--{format.name}" for format in flagged if format.unpacked_inputs)
    branched = " and ".join(f"--{format.name}" for format in flagged if format.has_branch)
    formats.add_argument(
        "--recipe",
        type=local_path,
        metavar="FILE",
        help="a JSON file of rules that say how each layer is stored (docs/planning.md)",
    )
    formats.add_argument(
        "--rank",
        type=rank,
        metavar="N",
        help="add a low-rank branch of N dimensions beside each quantized weight; auto: 64, 32 or 16, the largest that "
        f"costs at most a quarter of a bit per weight (default: auto for {branched}, 0 otherwise)",
    )
    formats.add_argument(
        "--calibrate",
        type=local_name,
        metavar="DIR",
        help="calibrate quantization on the edits in DIR, each NAME.png with its instruction in NAME.txt, or a "
        "published set such as KontextBench (docs/benchmarks.md); none: round every weight to the nearest (default: "
        "built-in scenes for the embedded model, none for others)",
    )
    formats.add_argument(
        "--weight-only",
        action="store_true",
        help="do not round activations; by default --int8 rounds them to 8 bits at run time, and with a "
        "calibration --fp8 to E4M3 and --nvfp4 to NVFP4",
    )
    formats.add_argument(
        "--static-inputs",
        action="store_true",
        help="with --int8 and a calibration: round the blocks' activations with scales from the calibration, for "
        "OpenVINO and TensorRT, and no others; --fp8 always does so",
    )
    formats.add_argument(
        "--activations",
        choices=sorted({name for format in flagged for name in format.unpacked_inputs}),
        help=f"with {unpacked} and a calibration: round the blocks' activations to 8 bits with scales from the "
        "calibration, for TensorRT, which then multiplies in 8 bits; fp8 needs sm_89",
    )
    formats.add_argument(
        "--fp8-attention",
        action="store_true",
        help="with --fp8 and a calibration: round the attention's operands to E4M3 too, for TensorRT",
    )
    formats.add_argument(
        "--link-weights",
        action="store_true",
        help="do not copy weights that MODEL's safetensors files have in the right format; the bundle then needs these "
        "files where they are now",
    )


def rank(text: str) -> int | str:
    """A whole number up to 512, or "auto"."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) > 512:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto or a rank from 0 to 512")
    return int(text)


def chosen_recipe(options: argparse.Namespace, checkpoint: Checkpoint, calibrated: bool) -> Recipe:
    """The recipe of the flags, or of the file of --recipe."""
    from ...model.networks import NETWORKS, linear_weights
    from ...quant.recipe import choose_recipe
    from ...quant.recipe_file import check_patterns, read_recipe

    networks, parameters = tuple(NETWORKS), checkpoint.parameters()
    if options.recipe is not None:
        compute = choose_recipe(networks, parameters, options.compute).compute
        recipe = read_recipe(options.recipe, compute, fixed=options.compute is not None)
        check_patterns(recipe, {name: linear_weights(name, checkpoint.config) for name in networks})
        if not calibrated and (rule := next((rule for rule in recipe.rules if rule.needs_calibration), None)):
            raise KontextError(
                f"{options.recipe}: static scales and centring of {rule.network} {rule.weight} need a calibration: "
                "name a folder with --calibrate"
            )
        return recipe
    return choose_recipe(
        networks,
        parameters,
        options.compute,
        options.quantization,
        chosen_rank(options),
        calibrated=calibrated,
        weight_only=options.weight_only,
        static_inputs=options.static_inputs,
        inputs=options.activations,
        fp8_attention=options.fp8_attention,
    )


def chosen_rank(options: argparse.Namespace) -> int | None:
    """Of the low-rank branches; None: by each weight's size."""
    from ...quant.options import usual_rank

    if options.rank is None:
        return usual_rank(options.quantization) if options.quantization else 0
    return None if options.rank == "auto" else int(options.rank)


def calibration_samples(options: argparse.Namespace) -> Samples | None:
    """The edits to calibrate on, if any."""
    deciding = (options.quantization, options.recipe, options.fit, getattr(options, "for"))
    quantized = any(each is not None for each in deciding)
    if not quantized:
        given = {
            "calibrate": options.calibrate,
            "rank": options.rank,
            "weight-only": options.weight_only or None,
        }
        for name in (name for name, value in given.items() if value is not None):
            raise KontextError(f"--{name} only applies with a quantized format, such as --fp8 or --int4")
    samples = calibration_folder(options.calibrate, options.model) if quantized else None
    if options.static_inputs:
        check_static_inputs(options.quantization, options.weight_only, samples is not None)
    if options.activations is not None:
        check_activations(options, samples is not None)
    if options.fp8_attention and options.quantization != FP8.name:
        raise KontextError("--fp8-attention only applies with --fp8: add it in the place of other formats")
    if options.fp8_attention and samples is None:
        raise KontextError("--fp8-attention needs a calibration: name a folder with --calibrate")
    return samples


def check_activations(options: argparse.Namespace, calibrated: bool) -> None:
    """Raises KontextError where --activations would do nothing."""
    name = options.activations
    takers = [f"--{each}" for each, format in FORMATS.items() if name in format.unpacked_inputs]
    if f"--{options.quantization}" not in takers:
        raise KontextError(
            f"--activations {name} only applies with {' or '.join(takers)}: with a calibration, --fp8, --nvfp4 "
            "and --int8 --static-inputs round activations to their own format"
        )
    for other, given in (("--weight-only", options.weight_only), ("--static-inputs", options.static_inputs)):
        if given:
            raise KontextError(f"--activations {name} cannot be combined with {other}: leave one of them out")
    if not calibrated:
        raise KontextError(f"--activations {name} needs a calibration: name a folder with --calibrate")


def check_static_inputs(quantization: str | None, weight_only: bool, calibrated: bool) -> None:
    """Raises KontextError where --static-inputs would do nothing."""
    takers = [
        f"--{name}" for name, format in FORMATS.items() if InputRounding.STATIC in format.input_roundings
    ]
    if f"--{quantization}" not in takers:
        raise KontextError(f"--static-inputs only applies with {' or '.join(takers)}")
    if weight_only:
        raise KontextError(
            "--static-inputs rounds activations, and --weight-only does not: leave one of them out"
        )
    if not calibrated:
        raise KontextError("--static-inputs needs a calibration: name a folder with --calibrate")


def calibration_folder(folder: str | None, model: str | None) -> Samples | None:
    """The edits in `folder`; without one scenes for the embedded model, where `model` is None."""
    from ..calibration.samples import read_samples, scene_samples

    if folder == "none":
        return None
    if folder is not None:
        return read_samples(Path(folder))
    return scene_samples() if model is None else None
