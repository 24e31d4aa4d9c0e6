"""Whether the planner predicts fidelity: plans of the embedded model for twenty budgets, and what each does to edits
that neither the sensitivity report nor the calibration has seen.

The networks run in PyTorch along recorded trajectories, each layer as its plan deploys it; no bundle is written.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics as numbers
import sys
from typing import Any

from ...decibels import decibels
from ...errors import KontextError
from ...export.bundle.tokenizer_files import read_tokenizers
from ...export.calibration.calibrate import calibrate, outline_bundle
from ...export.calibration.plan import MemoryPlan, make_plan
from ...export.calibration.samples import batch_size, scene_samples
from ...export.calibration.sensitivity import (
    QuantizedWeights,
    measure_sensitivity,
    measured_layers,
    velocity_error,
    widest_recipe,
)
from ...export.calibration.trajectories import EditableNetworks, record_edits
from ...export.cli.source_flags import EMBEDDED
from ...export.edit_sets.samples import Sample, Samples
from ...export.progress import Progress
from ...model.checkpoint import Checkpoint
from ...quant.formats import FORMATS
from ...quant.gpus import find_target
from ...quant.memory import Workload
from ...quant.options import parse_options
from ...quant.quantized_product import QuantizedProduct
from ...quant.recipe import Layer
from ...quant.sensitivity import Sensitivity
from ...runtime.pipeline import Pipeline
from ..cases import scene_cases
from ..flags import add_seed_flag, at_least
from ..report import Table, finish

CHOICES = ("int8,int4:0", "fp8+fp8,int8+int8,int4:0+int8")
"""What plans choose from, half of the budgets each: weights alone, and inputs that are rounded too."""

SIDE = 32
"""Pixels of the edit that is planned for: small, since at the model's own size the autoencoder's memory, which no plan
changes, is most of every budget."""

LEAST_ERROR = 1e-12
"""Plans that lose nothing have no ratio to compare."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budgets", type=int, default=20, help="how many (20)")
    parser.add_argument("-n", "--count", type=int, default=1, help="held-out edits of each kind (1)")
    add_seed_flag(parser, "seed of the held-out edits (0)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, budgets=2, count=1)
    result = compare_plans(arguments.budgets, arguments.count, arguments.seed, Progress(sys.stderr.isatty()))
    finish(result, tables(result), footer(result), arguments.json)


def compare_plans(budgets: int, count: int, seed: int, progress: Progress) -> dict[str, Any]:
    """Predicted and measured error of the velocity of each plan."""
    checkpoint = Checkpoint.open(EMBEDDED)
    tokenizers, samples = read_tokenizers(checkpoint), scene_samples()
    options = parse_options(",".join(CHOICES))
    report = measure_sensitivity(checkpoint, options, tokenizers, samples, True, progress)
    statistics = calibrate(checkpoint, widest_recipe(checkpoint), tokenizers, samples, progress)
    source = QuantizedWeights(checkpoint, statistics)
    cases = scene_cases(count, seed)
    held_out = Samples("held-out scenes", [Sample(case.prompt, case.picture()) for case in cases])
    networks, rows = EditableNetworks(checkpoint), []
    made: dict[tuple[str, str, Layer], QuantizedProduct] = {}
    with outline_bundle(checkpoint, networks.recipe, tokenizers) as bundle:
        pipeline = Pipeline(bundle, networks)
        edits = record_edits(pipeline, networks, held_out, batch_size(checkpoint.config), len(cases))
        with progress.steps("plans", budgets) as advance:
            for index, choices in enumerate(CHOICES):
                share = budgets // len(CHOICES) + (index < budgets % len(CHOICES))
                for plan in spread_plans(checkpoint, choices, report, share):
                    with contextlib.ExitStack() as stack:
                        for network, products in products_of(checkpoint, plan, source, made).items():
                            stack.enter_context(networks.quantized(network, products))
                        measured, _ = velocity_error(edits, "text_encoder_2")
                    rows.append(row_of(plan, choices, measured))
                    advance(1)
    misses = [abs(row["predicted"] - row["measured"]) for row in rows]
    return {
        "what": "plan-fidelity",
        "model": checkpoint.config.name,
        "edits": len(cases),
        "seed": seed,
        "rows": rows,
        "median_error": numbers.median(misses),
    }


def spread_plans(checkpoint: Checkpoint, choices: str, report: Sensitivity, count: int) -> list[MemoryPlan]:
    """Plans for budgets from the smallest that the model fits into to the largest that changes anything."""

    def plan(budget: int) -> MemoryPlan | None:
        work, target = Workload(SIDE, SIDE, steps=checkpoint.config.sampler.steps), find_target("sm_89")
        try:
            return make_plan(checkpoint.config, budget, target, work, None, parse_options(choices), report)
        except KontextError:
            return None

    low, high = 0, 1 << 32
    found = plan(high)
    assert found is not None
    high = found.peak
    while high - low > 1000:  # the smallest that fits
        middle = (low + high) // 2
        low, high = (low, middle) if plan(middle) else (middle, high)
    # Closer together where they are small: there plans differ most.
    made = [plan(high + (found.peak - high) * index**2 // count**2) for index in range(count)]
    return [each for each in made if each is not None and each.error > LEAST_ERROR]


def products_of(
    checkpoint: Checkpoint,
    plan: MemoryPlan,
    source: QuantizedWeights,
    made: dict[tuple[str, str, Layer], QuantizedProduct],
) -> dict[str, dict[str, QuantizedProduct]]:
    """Network → weight → what the layers that a plan quantizes compute; those `made` before are not made again."""
    result: dict[str, dict[str, QuantizedProduct]] = {}
    for network, weights in measured_layers(checkpoint).items():
        for weight, shape in weights.items():
            layer = plan.recipe.layer_of(network, weight, shape, True)
            if layer.format in FORMATS:
                key = (network, weight, layer)
                if key not in made:
                    made[key] = source.of_layer(*key)
                result.setdefault(network, {})[weight] = made[key]
    return result


def row_of(plan: MemoryPlan, choices: str, measured: float) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for stage in plan.stages:
        for name, (layers, _) in stage.counts.items():
            counts[name] = counts.get(name, 0) + layers
    return {
        "choices": choices,
        "budget": plan.budget,
        "layers": counts,
        "predicted": decibels(1, plan.error),
        "measured": decibels(1, measured),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    rows = [
        [
            row["choices"],
            f"{row['budget'] / 1e6:.1f}",
            ", ".join(f"{count} {name}" for name, count in sorted(row["layers"].items())),
            f"{row['predicted']:.1f}",
            f"{row['measured']:.1f}",
            f"{row['predicted'] - row['measured']:+.1f}",
        ]
        for row in result["rows"]
    ]
    header = ["--formats", "budget [MB]", "layers", "predicted [dB]", "measured [dB]", "difference"]
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    return (
        f"{result['model']}, {result['edits']} held-out edits at an early, a middle and a late step; median absolute "
        f"difference {result['median_error']:.1f} dB."
    )
