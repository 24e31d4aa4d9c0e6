"""Plans `--for`: which recipe is fastest on a card, among those that fit into its memory and lose little enough.

Every recipe that flags stand for is planned: the memory of each stage, the expected error, and the least time of a
step (`quant.speed`). If none fits, the planner of `--fit` chooses each layer's format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...decibels import decibels
from ...errors import KontextError
from ...model.config import KontextConfig
from ...model.networks import NETWORKS, NetworkShapes, weight_shapes
from ...quant.cards import Card
from ...quant.formats import FORMATS
from ...quant.formats.base import InputRounding, TensorRT
from ...quant.gpus import find_target
from ...quant.memory import Workload, demands, executor_of, tokens_of
from ...quant.options import Option, layer_bytes, usual_rank
from ...quant.planner import Allocation, Choice
from ...quant.recipe import ANY_QUANTIZED, COMPUTE_BYTES, Layer, Recipe, choose_recipe
from ...quant.sensitivity import INPUT_ERRORS, Sensitivity, kind_of, normal_error, prior_sensitivity
from ...quant.speed import ENGINE, TORCH, Product, step_seconds
from ...runtime.units import gigabytes
from .plan import COMPUTE, MemoryPlan, fixed_bytes, make_plan, stage_of
from .sensitivity import count_kinds, quantizable_layers

FIDELITY = 25.0
"""Least expected signal-to-noise ratio of the velocity in dB, unless the user says otherwise."""

ENGINE_CAPABILITIES = (80, 86, 89, 120, 121)
"""That TensorRT for RTX compiles whole bundles for."""

KERNEL_CAPABILITY = 80
"""The first that the torch backend's kernels run on."""


@dataclass(frozen=True)
class Flags:
    """Flags of an export, as `choose_recipe` takes them. `running` is the format that the torch backend rounds inputs
    to, and `run` are the flags of kontext-edit that it takes, "" if it does so by itself."""

    export: str
    quantization: str | None = None
    weight_only: bool = False
    static_inputs: bool = False
    inputs: str | None = None
    running: str = ""
    run: str = ""

    @property
    def text(self) -> str:
        return f"{self.export}, run with {self.run}" if self.run else self.export

    @property
    def rounded(self) -> str:
        """The format that inputs are to be rounded to; "" for none."""
        return self.inputs or self.running or ("" if self.weight_only else self.quantization or "")


FLAGS = {
    ENGINE: (
        Flags(""),
        Flags("--fp8", "fp8"),
        Flags("--fp8 --weight-only", "fp8", weight_only=True),
        Flags("--int8 --static-inputs", "int8", static_inputs=True),
        Flags("--int8 --weight-only", "int8", weight_only=True),
        Flags("--int4 --activations fp8", "int4", inputs="fp8"),
        Flags("--int4 --activations int8", "int4", inputs="int8"),
        Flags("--int4", "int4", weight_only=True),
        Flags("--nvfp4", "nvfp4"),
        Flags("--nvfp4 --weight-only", "nvfp4", weight_only=True),
        Flags("--nf4", "nf4", weight_only=True),
    ),
    TORCH: (
        Flags(""),
        Flags("--fp8", "fp8", running="fp8"),
        Flags("--int8", "int8", running="int8"),
        Flags("--int4", "int4", weight_only=True),
        Flags("--int4", "int4", weight_only=True, running="fp8", run="--backend torch --activations fp8"),
        Flags("--nvfp4", "nvfp4", running="nvfp4"),
        Flags("--nvfp4 --weight-only", "nvfp4", weight_only=True),
        Flags("--nf4", "nf4", weight_only=True),
    ),
}
"""Executor → the uniform recipes that can be chosen for it."""


@dataclass(frozen=True)
class Candidate:
    """A recipe on a card. `seconds` are of a step, at least; None with the `plan` for one that cannot run there.
    `verdict` says why it is not chosen; "" for the one that is. `run` are flags of kontext-edit that it takes."""

    flags: str
    plan: MemoryPlan | None
    seconds: float | None
    verdict: str = ""
    run: str = ""

    def as_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "flags": self.flags,
            "step_seconds": self.seconds,
            "verdict": self.verdict,
            "velocity_error": None if plan is None else plan.error,
            "peak": None if plan is None else plan.peak,
            "stages": {} if plan is None else {stage.network: stage.peak for stage in plan.stages},
        }


@dataclass(frozen=True)
class CardPlan:
    """What `--for` found. `plan` is the chosen one, of a candidate or of --fit."""

    card: Card
    executor: str
    least: float
    candidates: tuple[Candidate, ...]
    plan: MemoryPlan
    seconds: float | None

    @property
    def best(self) -> Candidate | None:
        """The chosen recipe; None if each layer's format was chosen."""
        return next((each for each in self.candidates if not each.verdict), None)

    @property
    def chosen(self) -> str:
        """The flags of the chosen recipe, or the budget that its layers were chosen for."""
        return self.best.flags if self.best else f"--fit {gigabytes(self.plan.budget).replace(' ', '')}"

    @property
    def run(self) -> str:
        """Flags that kontext-edit needs for it, beside the bundle's."""
        return self.best.run if self.best else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "card": self.card.name,
            "executor": self.executor,
            "fidelity": self.least,
            "chosen": self.chosen,
            "step_seconds": self.seconds,
            "candidates": [each.as_json() for each in self.candidates],
            **self.plan.as_json(),
        }


@dataclass(frozen=True)
class Search:
    """What every candidate is judged by."""

    config: KontextConfig
    card: Card
    executor: str
    work: Workload
    compute: str
    calibrated: bool
    report: Sensitivity | None

    @cached_property
    def shapes(self) -> NetworkShapes:
        return {name: weight_shapes(name, self.config) for name in NETWORKS}

    @cached_property
    def parameters(self) -> int:
        return sum(math.prod(shape) for each in self.shapes.values() for shape in each.values())

    @cached_property
    def layers(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Network → weight → [in, out] of every linear that some recipe quantizes."""
        base = choose_recipe(tuple(NETWORKS), self.parameters, self.compute, ANY_QUANTIZED)
        return quantizable_layers(self.config, self.shapes, base)

    @property
    def budget(self) -> int:
        """Cards are sold in GiB; what GB are less is left for the desktop and the driver, as docs/planning.md says."""
        return (self.card.memory >> 30) * 10**9

    def recipe(self, flags: Flags) -> Recipe:
        return choose_recipe(
            tuple(NETWORKS),
            self.parameters,
            self.compute,
            flags.quantization,
            usual_rank(flags.quantization) if flags.quantization else 0,
            calibrated=self.calibrated,
            weight_only=flags.weight_only,
            static_inputs=flags.static_inputs,
            inputs=flags.inputs,
        )


def fastest(
    config: KontextConfig,
    card: Card,
    executor: str,
    work: Workload,
    compute: str | None = None,
    least: float = FIDELITY,
    calibrated: bool = True,
    report: Sensitivity | None = None,
) -> CardPlan:
    """The recipe whose step takes the least time on a card, of those that fit and are expected to have `least` dB.

    Args:
        config: the model's sizes.
        card: its memory, bandwidth and rates decide.
        executor: `ENGINE` or `TORCH`.
        work: the edit to plan for.
        compute: what networks compute in. Default: bf16, or fp16 where the card lacks it.
        least: expected signal-to-noise ratio of the velocity, in dB.
        calibrated: there will be statistics, so inputs can have static scales.
        report: each layer's sensitivity. Default: estimated from the shapes.

    Raises:
        KontextError: the card cannot run the executor or `compute`, or nothing is within `least` and the memory.
    """
    if executor == ENGINE and card.capability not in ENGINE_CAPABILITIES:
        raise KontextError(
            f"TensorRT for RTX does not compile for {card.name}: leave out --engine, for the torch backend"
        )
    if executor == TORCH and card.capability < KERNEL_CAPABILITY:
        raise KontextError(
            f"neither engines nor the torch backend's kernels run on {card.name}: export with --fp16 --int4, and run "
            "it in ONNX Runtime (--device cuda)"
        )
    if compute is None:
        compute = "bf16" if card.rate("bf16") else "fp16"
    if card.rate(compute) is None:
        raise KontextError(
            f"{card.name} does not compute in {compute}: choose --{'fp16' if compute == 'bf16' else 'bf16'}"
        )
    search = Search(config, card, executor, work, compute, calibrated, report)
    found = [judged(search, flags, least) for flags in FLAGS[executor]]
    usable = [each for each in found if not each.verdict]
    best = min(
        usable,
        key=lambda each: (each.seconds or math.inf, each.plan.error if each.plan else math.inf),
        default=None,
    )
    slower = [
        replace(each, verdict=f"{(each.seconds or 0) / (best.seconds or 1):.2f} times as long")
        if best and not each.verdict and each is not best
        else each
        for each in found
    ]
    if best is not None and best.plan is not None:
        return CardPlan(card, executor, least, tuple(slower), best.plan, best.seconds)
    return fitted(search, tuple(slower), least)


def judged(search: Search, flags: Flags, least: float) -> Candidate:
    """A candidate with its plan, and what speaks against it."""
    text = f"--{search.compute} {flags.text}".strip()
    recipe = search.recipe(flags)
    if (reason := impossible(search, recipe, flags)) is not None:
        return Candidate(text, None, None, reason)
    plan = uniform_plan(search, recipe, flags)
    seconds = step_of(search, recipe, flags)
    verdict = ""
    if seconds is None:
        verdict = f"{search.card.name} lacks a format of it"
    elif plan.peak > search.budget:
        stage = max(plan.stages, key=lambda each: each.peak)
        verdict = f"{stage.network} needs {gigabytes(stage.peak)} of {gigabytes(search.budget)}"
    elif plan.error > 0 and decibels(1, plan.error) < least:
        verdict = f"below {least:g} dB"
    return Candidate(text, plan, seconds, verdict, flags.run)


def inputs_of(search: Search, network: str, layer: Layer, flags: Flags | None) -> str:
    """The format that the executor rounds a layer's inputs to; "" for none."""
    if search.executor == ENGINE or network != "transformer":
        return layer.activations
    running = "" if flags is None or layer.format not in FORMATS else flags.running
    if not running or running not in FORMATS[layer.format].kernel_inputs:
        return ""
    # Scales of rows are found at run time, what scales of blocks are relative to by a calibration only.
    of_blocks = FORMATS[running].input_roundings == (InputRounding.BLOCKS,)
    return layer.activations if of_blocks else running


def impossible(search: Search, recipe: Recipe, flags: Flags) -> str | None:
    """Why a recipe cannot run on the card; None if it can."""
    if flags.quantization is None:
        return None
    card, format = search.card, FORMATS[flags.quantization]
    lowest = format.min_capability
    if search.executor == ENGINE:
        if format.tensorrt is TensorRT.REFUSED:
            return f"TensorRT does not take {format.name}"
        lowest = max(lowest, format.tensorrt_capability)
    if card.capability < lowest:
        return f"{card.name} has no {format.name.upper()}"
    inputs = flags.rounded
    if flags.running and flags.running not in format.kernel_inputs:
        return f"no kernel multiplies {format.name.upper()} by {flags.running.upper()}"
    if inputs and card.rate(inputs) is None:
        return f"{card.name} does not multiply in {inputs.upper()}"
    layers = [
        recipe.layer_of("transformer", weight, shape, True)
        for weight, shape in search.layers["transformer"].items()
    ]
    rounded = {inputs_of(search, "transformer", layer, flags) for layer in layers} - {""}
    if rounded != ({inputs} if inputs else set()) or (
        not search.calibrated and any(rule.needs_calibration for rule in recipe.rules)
    ):
        return "needs --calibrate"
    return None


def uniform_plan(search: Search, recipe: Recipe, flags: Flags) -> MemoryPlan:
    """The memory and the expected error of one recipe for all layers."""
    config, shapes = search.config, search.shapes
    target = find_target(f"sm_{search.card.capability}")
    layers = search.layers
    counts = count_kinds(layers)
    needs = demands(config, recipe.compute, search.work, executor_of(target))
    stages = []
    for network in NETWORKS:
        wide = COMPUTE_BYTES[recipe.compute[network]]
        choices, unpacked = [], 0
        for weight, shape in layers.get(network, {}).items():
            layer = recipe.layer_of(network, weight, shape, True)
            if layer.format not in FORMATS:
                size = wide * math.prod(shape)
                choices.append(Choice(COMPUTE, size, 0.0, size))
                continue
            inputs = inputs_of(search, network, layer, flags)
            option = Option(layer.format, usual_rank(layer.format), inputs)
            if search.report is not None:
                error = search.report.error(network, weight, shape, option)
            else:
                error = normal_error(option, shape, wide) + (INPUT_ERRORS[inputs] if inputs else 0.0)
                error *= prior_sensitivity(network, weight, counts[kind_of(network, weight)])
            size = layer_bytes(layer, shape, wide)
            choices.append(Choice(str(option), size, error, size))
            unpacked = max(unpacked, wide * math.prod(shape))
        fixed = fixed_bytes(config, network, shapes[network], layers.get(network, {}), wide)
        demand = needs[network]
        demand = replace(demand, workspace=demand.workspace + unpacked)
        stages.append(stage_of(network, Allocation(tuple(choices), 0.0), fixed, demand))
    method = "shapes" if search.report is None else search.report.method
    return MemoryPlan(
        config.name, search.budget, target, search.work, recipe.compute["transformer"], method, stages, recipe
    )


def step_of(search: Search, recipe: Recipe, flags: Flags | None = None) -> float | None:
    """Seconds of one step of the transformer, at least."""
    layers = search.layers["transformer"]
    products = [product_of(search, recipe, weight, shape, flags) for weight, shape in layers.items()]
    model, tokens = search.config.transformer, tokens_of(search.config, search.work).all
    blocks = model.num_double_blocks + model.num_single_blocks
    attention = 4.0 * search.work.batch * blocks * tokens**2 * model.hidden_size
    return step_seconds(products, attention, search.card, search.compute, search.executor)


def product_of(
    search: Search, recipe: Recipe, weight: str, shape: tuple[int, int], flags: Flags | None
) -> Product:
    tokens = tokens_of(search.config, search.work)
    stream = (
        tokens.all
        if weight.startswith("single_blocks.")
        else tokens.text
        if ".txt_" in weight
        else tokens.image
    )
    layer = recipe.layer_of("transformer", weight, shape, True)
    wide = COMPUTE_BYTES[search.compute]
    if layer.format not in FORMATS:
        return Product(search.work.batch * stream, *shape, layer, wide * math.prod(shape))
    rounded = inputs_of(search, "transformer", layer, flags)
    return Product(search.work.batch * stream, *shape, layer, layer_bytes(layer, shape, wide), rounded)


def fitted(search: Search, candidates: tuple[Candidate, ...], least: float) -> CardPlan:
    """Where no recipe for all layers is within memory and fidelity: each layer's format from those that the executor
    multiplies without unpacking them first.

    Raises:
        KontextError: nothing is.
    """
    target = find_target(f"sm_{search.card.capability}")
    options = [
        option
        for name in target.formats
        if search.executor == TORCH or FORMATS[name].tensorrt in (TensorRT.FUSED, TensorRT.FUSED_CONSTANTS)
        if search.executor == TORCH or search.card.capability >= FORMATS[name].tensorrt_capability
        for option in (Option.parse(name), Option(name))
        if search.report is None or str(option) in search.report.options
    ]
    plan = make_plan(
        search.config,
        search.budget,
        target,
        search.work,
        search.compute,
        list(dict.fromkeys(options)),
        search.report,
    )
    reached = decibels(1, plan.error) if plan.error > 0 else math.inf
    if reached < least:
        best = max((decibels(1, each.plan.error) for each in candidates if each.plan and each.plan.error > 0
                    and each.plan.peak <= search.budget), default=reached)  # fmt: skip
        raise KontextError(
            f"nothing on {search.card.name} is expected to have {least:g} dB in {gigabytes(search.budget)}: the best "
            f"has {max(best, reached):.1f} dB, so ask for --fidelity {math.floor(max(best, reached))}"
        )
    return CardPlan(search.card, search.executor, least, candidates, plan, step_of(search, plan.recipe))
