"""Plans `--fit`: from a model's shapes, a memory budget and a GPU to every layer's format, the peak memory of every
stage, and the expected error of an edit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...errors import KontextError
from ...model.config import KontextConfig
from ...model.networks import NETWORKS, weight_shapes
from ...quant.formats import FORMATS
from ...quant.gpus import Target
from ...quant.memory import Demand, Workload, demands, executor_of, resident_bytes
from ...quant.options import Option, input_formats, layer_bytes
from ...quant.planner import Allocation, Choice, Item, allocate
from ...quant.recipe import (
    ANY_QUANTIZED,
    COMPUTE_BYTES,
    SPARED,
    Layer,
    Recipe,
    Rule,
    choose_recipe,
    engine_rules,
)
from ...quant.sensitivity import Sensitivity, input_error, kind_of, normal_error, prior_sensitivity
from ...runtime.units import gigabytes
from ..graph.interface import constants
from .sensitivity import count_kinds, quantizable_layers

COMPUTE = "compute"
"""The choice that leaves a layer in the format that its network computes in."""


@dataclass(frozen=True)
class StagePlan:
    """One network's share of an edit.

    `counts` are layers and bytes by format. `error` is the relative energy that its layers add to the velocity's error;
    no plan of this size adds less than `bound`.
    """

    network: str
    weights: int
    stored: int
    """Bytes on disk. An engine may hold more in memory: `weights`."""
    demand: Demand
    counts: Mapping[str, tuple[int, int]]
    error: float
    bound: float

    @property
    def peak(self) -> int:
        return self.weights + self.demand.bytes


@dataclass(frozen=True)
class MemoryPlan:
    """How to store a model so that an edit fits into `budget` bytes on `target`."""

    model: str
    budget: int
    target: Target
    work: Workload
    compute: str
    method: str
    """How layers' errors were found, a key of `METHODS`."""
    stages: Sequence[StagePlan]
    recipe: Recipe

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)

    @property
    def error(self) -> float:
        return math.fsum(stage.error for stage in self.stages)

    @property
    def bound(self) -> float:
        return math.fsum(stage.bound for stage in self.stages)

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(stage.stored for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        return {
            "budget": self.budget,
            "target": self.target.name,
            "workload": asdict(self.work),
            "sensitivity": self.method,
            "peak": self.peak,
            "velocity_error": self.error,
            "velocity_error_bound": self.bound,
            "stages": {
                stage.network: {
                    "peak": stage.peak,
                    "weights": stage.weights,
                    **asdict(stage.demand),
                    "formats": {
                        name: {"layers": layers, "bytes": size}
                        for name, (layers, size) in stage.counts.items()
                    },
                }
                for stage in self.stages
            },
        }


def make_plan(
    config: KontextConfig,
    budget: int,
    target: Target,
    work: Workload,
    compute: str | None = None,
    requested: Sequence[Option] | None = None,
    report: Sensitivity | None = None,
) -> MemoryPlan:
    """The plan with the smallest error; needs only the model's shapes.

    Args:
        config: the model's sizes.
        budget: bytes that no stage may exceed.
        target: determines the formats, and the memory used beside the model.
        work: the edit to plan for.
        compute: format that networks compute in. Default: that of an export without flags; fp32 on a CPU.
        requested: formats to choose from. Default: all that the target runs.
        report: each layer's sensitivity. Default: estimated from the shapes.

    Raises:
        KontextError: nothing fits (the message has the smallest budget that does), or the options contradict each
            other.
    """
    shapes = {name: weight_shapes(name, config) for name in NETWORKS}
    parameters = sum(math.prod(shape) for each in shapes.values() for shape in each.values())
    if compute is None and target.is_cpu:
        compute = "fp32"
    base = choose_recipe(tuple(NETWORKS), parameters, compute, ANY_QUANTIZED)
    options = usable_options(target, requested, report)
    layers = quantizable_layers(config, shapes, base)
    counts = count_kinds(layers)
    needs = demands(config, base.compute, work, executor_of(target))
    stages, rules, smallest = [], list(SPARED), 0
    for network in NETWORKS:
        wide = COMPUTE_BYTES[base.compute[network]]
        items = []
        for weight, shape in layers.get(network, {}).items():
            plain = wide * math.prod(shape)
            choices = [Choice(COMPUTE, plain, 0.0, plain)]
            for option in options:
                if option.fits(shape):
                    if report is not None:
                        error = report.error(network, weight, shape, option)
                    else:
                        error = prior_sensitivity(network, weight, counts[kind_of(network, weight)])
                        error *= normal_error(option, shape, wide) + input_error(option, network, weight)
                    stored = layer_bytes(option.layer(network, weight, shape, wide), shape, wide)
                    size = resident_bytes([(option.format, stored)], target)
                    choices.append(Choice(str(option), size, error, stored))
            items.append(Item(weight, tuple(choices)))
        fixed = fixed_bytes(config, network, shapes[network], layers.get(network, {}), wide)
        stage, least = fit_stage(network, items, layers.get(network, {}), fixed, needs[network], budget, wide)
        smallest = max(smallest, least)
        if stage is not None:
            allocation, made = stage
            stages.append(made)
            rules += rules_for(network, items, allocation)
    if len(stages) < len(NETWORKS):
        raise KontextError(
            f"{config.name} does not fit into {gigabytes(budget)} on {target.name}: the smallest budget for {work} is "
            f"{math.ceil(smallest / 1e7) / 100:.2f}GB"
        )
    quantized = any(name != COMPUTE for stage in stages for name in stage.counts)
    recipe = choose_recipe(tuple(NETWORKS), parameters, compute)
    if quantized:
        recipe = Recipe(f"mixed ({gigabytes(budget)})", base.compute, tuple(rules))
    method = "shapes" if report is None else report.method
    return MemoryPlan(config.name, budget, target, work, base.compute["transformer"], method, stages, recipe)


def usable_options(
    target: Target, requested: Sequence[Option] | None, report: Sensitivity | None
) -> list[Option]:
    """The options that a plan chooses from.

    Raises:
        KontextError: a requested option does not run on the target, or is not in the report.
    """
    if requested is not None:
        for option in requested:
            if option.format not in target.formats or option.format not in FORMATS:
                runs = ", ".join(name for name in target.formats if name in FORMATS)
                raise KontextError(f"{option.format} weights do not run on {target.name}: choose from {runs}")
            if option.inputs and option.inputs not in (() if target.is_cpu else target.formats):
                raise KontextError(
                    f"{target.name} does not multiply by inputs in {option.inputs}: "
                    f"leave out +{option.inputs}{nearest_inputs(option, target)}"
                )
            if report is not None and str(option) not in report.options:
                raise KontextError(
                    f"the sensitivity report has {', '.join(report.options)}, not {option}: measure it with "
                    f"kontext-export sensitivity --formats {option}"
                )
        return list(requested)
    if report is not None:
        options = [Option.parse(text) for text in report.options]
    else:
        options = [option for name in FORMATS for option in (Option.parse(name), Option(name))]
    usable = [
        each for each in dict.fromkeys(options) if each.format in FORMATS and each.format in target.formats
    ]
    if not usable:
        raise KontextError(
            f"the sensitivity report has no format that runs on {target.name}, which runs {', '.join(target.formats)}"
        )
    return usable


def nearest_inputs(option: Option, target: Target) -> str:
    """The end of a sentence: what else inputs can be rounded to there."""
    others = [name for name in input_formats(option.format) if name in target.formats and not target.is_cpu]
    return f", or choose {option.format}+{others[0]}" if others else ""


def fixed_bytes(
    config: KontextConfig,
    network: str,
    shapes: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, object],
    wide: int,
) -> int:
    """Bytes of the weights that are never quantized, and of the graph's tables."""
    tables = sum(table.numel() * table.element_size() for table in constants(network, config).values())
    return tables + sum(wide * math.prod(shape) for weight, shape in shapes.items() if weight not in layers)


def fit_stage(
    network: str,
    items: Sequence[Item],
    shapes: Mapping[str, tuple[int, int]],
    fixed: int,
    demand: Demand,
    budget: int,
    wide: int,
) -> tuple[tuple[Allocation, StagePlan] | None, int]:
    """The stage with the smallest error within the budget, or None; and the smallest budget that it fits into."""
    available = budget - demand.bytes - fixed
    plain = Allocation(tuple(item.choices[0] for item in items), 0.0)
    if plain.bytes <= available:
        return (plain, stage_of(network, plain, fixed, demand)), 0
    # Without a kernel for packed weights, they are unpacked one at a time.
    unpacked = wide * max(math.prod(shape) for shape in shapes.values()) if shapes else 0
    demand = Demand(demand.held, demand.activations, demand.workspace + unpacked, demand.overhead)
    least = demand.bytes + fixed + sum(item.smallest() for item in items)
    allocation = allocate(items, available - unpacked)
    if allocation is None:
        return None, least
    return (allocation, stage_of(network, allocation, fixed, demand)), least


def stage_of(network: str, allocation: Allocation, fixed: int, demand: Demand) -> StagePlan:
    counts: dict[str, tuple[int, int]] = {}
    for choice in allocation.choices:
        layers, size = counts.get(choice.name, (0, 0))
        counts[choice.name] = (layers + 1, size + choice.stored)
    return StagePlan(
        network,
        allocation.bytes + fixed,
        sum(choice.stored for choice in allocation.choices) + fixed,
        demand,
        counts,
        allocation.error,
        min(allocation.bound, allocation.error),
    )


def rules_for(network: str, items: Sequence[Item], allocation: Allocation) -> list[Rule]:
    """Rules that give each layer its choice: exceptions by name, then the most common choice for all others."""
    names = [choice.name for choice in allocation.choices]
    if not names:
        return []
    common = max(dict.fromkeys(names), key=names.count)
    pairs = [(item.weight, name) for item, name in zip(items, names, strict=True) if name != common]
    return [*(rule_of(network, *pair) for pair in pairs), *common_rules(network, common)]


def rule_of(network: str, weight: str, name: str) -> Rule:
    return Rule(network, weight, COMPUTE) if name == COMPUTE else Option.parse(name).rule(network, weight)


def common_rules(network: str, name: str) -> list[Rule]:
    """Rules that give all other layers of a network one choice."""
    if name == COMPUTE or not (option := Option.parse(name)).inputs:
        return [rule_of(network, "*", name)]
    rules = engine_rules(option.format, option.rank, option.inputs)
    return [replace(rule, network=network) for rule in rules if rule.matches(network, rule.weight)]


def stored_layers(config: KontextConfig, network: str, precision: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(format, bytes) of every weight and table of a bundle's network, from its manifest's `precision`."""
    compute = precision["networks"][network]
    layers = precision["layers"].get(network, {})
    result = [
        (compute, table.numel() * table.element_size()) for table in constants(network, config).values()
    ]
    for weight, shape in weight_shapes(network, config).items():
        layer = Layer.from_json(layers.get(weight, compute))
        if layer.format in FORMATS:
            result.append((layer.format, layer_bytes(layer, (shape[1], shape[0]), COMPUTE_BYTES[compute])))
        else:
            result.append((layer.format, COMPUTE_BYTES[layer.format] * math.prod(shape)))
    return result
