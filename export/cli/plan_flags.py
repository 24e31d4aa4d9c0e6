"""The flags about a memory budget, `--fit` and what belongs to it, and the plan that they ask for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...command import local_path
from ...errors import KontextError
from .card_flags import card_of
from .dependent_flags import refuse_without
from .source_flags import whole_number

if TYPE_CHECKING:
    from ...model.config import KontextConfig
    from ...quant.memory import Workload
    from ..calibration.plan import MemoryPlan

DEFAULT_GPU = "sm_89"


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a memory budget")
    group.add_argument(
        "--fit",
        metavar="SIZE",
        help="choose every layer's format so that an edit fits into SIZE (12GB, 7.5GiB) of memory and loses least; "
        "prints the plan first",
    )
    group.add_argument(
        "--plan-only", action="store_true", help="stop after the plan; reads no weights and writes nothing"
    )
    group.add_argument(
        "--gpu",
        metavar="NAME",
        help="what the bundle is to run on: sm_89, a card such as RTX 4090, or cpu (default: sm_89)",
    )
    group.add_argument(
        "--sensitivity",
        type=local_path,
        metavar="FILE",
        help="report of kontext-export sensitivity (default: estimated from the layers' shapes)",
    )
    group.add_argument(
        "--formats",
        metavar="LIST",
        help="formats to choose from, such as int8,int4:0, or fp8+fp8,int4+int8 with inputs that are rounded too, for "
        "compiled engines (default: all that the GPU runs, with inputs in 16 bits)",
    )
    group.add_argument(
        "--size", metavar="WxH", help="pixels of the edit to plan for (default: the model's square)"
    )
    group.add_argument(
        "--references", type=whole_number(0, 64), metavar="N", help="its references (default: 1)"
    )
    group.add_argument("--batch", type=whole_number(1, 64), metavar="N", help="edits in a batch (default: 1)")


def check_plan_flags(options: argparse.Namespace) -> None:
    """Raises KontextError for flags that cannot be combined."""
    quantization = f"--{options.quantization}" if options.quantization else None
    decides = [flag for flag, given in (
        ("--fit", options.fit is not None), ("--recipe", options.recipe is not None), (quantization, quantization)
    ) if given]  # fmt: skip
    if len(decides) > 1:
        raise KontextError(
            f"{decides[0]} cannot be combined with {decides[1]}: it decides every layer's format"
        )
    if options.rank is not None and options.quantization is None and decides:
        raise KontextError(f"{decides[0]} cannot be combined with --rank: it decides every layer's rank")
    if options.fit is None:
        refuse_without("--fit", options, ("gpu", "formats"))
        if card_of(options) is None:
            names = ("plan_only", "sensitivity", "size", "references", "batch")
            refuse_without("--fit or --for", options, names)


def plan_for(options: argparse.Namespace, config: KontextConfig) -> MemoryPlan:
    """The plan that the flags ask for; needs the model's sizes and no weight.

    Raises:
        KontextError: a flag has no meaning, or nothing fits.
    """
    # Imported here: --help and a mistyped flag should not wait for PyTorch.
    from ...quant.gpus import find_target
    from ...quant.options import parse_options
    from ...quant.sensitivity import Sensitivity
    from ...runtime.units import parse_bytes
    from ..calibration.plan import make_plan

    budget = parse_bytes(options.fit, "--fit")
    target = find_target(options.gpu or DEFAULT_GPU)
    formats = None if options.formats is None else parse_options(options.formats)
    report = None if options.sensitivity is None else Sensitivity.load(options.sensitivity)
    return make_plan(config, budget, target, workload(options, config), options.compute, formats, report)


def workload(options: argparse.Namespace, config: KontextConfig) -> Workload:
    """The edit to plan for."""
    from ...quant.memory import Workload

    width = height = config.autoencoder.sample_size
    if options.size is not None:
        width, height = parse_picture_size(options.size, 2 * config.autoencoder.downscale)
    references = 1 if options.references is None else options.references
    batch = 1 if options.batch is None else options.batch
    return Workload(width, height, references, batch, config.sampler.steps)


def parse_picture_size(text: str, multiple: int) -> tuple[int, int]:
    """WIDTHxHEIGHT, both multiples of a token's side."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise KontextError(f"--size {text!r} is not WIDTHxHEIGHT, such as 1024x1024")
    sides = int(width), int(height)
    if any(not 0 < side <= 1 << 16 or side % multiple for side in sides):
        raise KontextError(f"--size {text}: both sides must be multiples of {multiple}")
    return sides
