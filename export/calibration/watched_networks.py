"""A checkpoint's networks in PyTorch as a backend of the pipeline, with hooks that collect statistics of their
inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import KontextError
from ...model.build_network import build_network
from ...model.checkpoint import Checkpoint, NetworkWeights
from ...model.networks import linear_weights
from ...model.transformer import JointAttention
from ...quant.formats import FORMATS
from ...quant.recipe import BIG_MODEL, Recipe
from ...quant.statistics import RANGES, InputStatistics, Statistics
from ...runtime.backends.protocol import SamplerStep
from ..graph.fp8_attention import OPERANDS, attention_names
from ..graph.interface import constants, network_interface

RESIDENT_BYTES = 2 << 30
"""Largest weights of a transformer that is held whole; of a larger one, blocks are read when they run."""


class WatchedNetworks:
    """A backend that adds the inputs of every linear that `recipe` quantizes to `statistics`."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, statistics: Statistics) -> None:
        self.checkpoint, self.recipe, self.statistics = checkpoint, recipe, statistics
        self.networks: dict[str, nn.Module] = {}
        self.ranges: Tensor | int = 0
        """Range of the sampler's steps that the current inputs belong to: one for all rows, or one for each row."""

    def hold(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(arrays)

    def release(self, *graphs: str) -> None:
        for graph in graphs:
            self.networks.pop(graph, None)

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        """As `runtime.backends.protocol.Backend`."""
        if graph not in self.networks:
            self.networks[graph] = self.build(graph)
        interface = network_interface(graph, self.checkpoint.config)
        if step is not None:
            self.ranges = RANGES * step.index // step.count
        elif graph == "modulation":  # rows are ordered by step, then by prompt
            rows = len(inputs["timestep"])
            self.ranges = torch.arange(rows) * RANGES // rows
        else:
            self.ranges = 0
        dtype = compute_dtype(self.checkpoint)
        arguments = []
        for name in interface.inputs:
            value = torch.from_numpy(np.ascontiguousarray(inputs[name]))
            arguments.append(
                value.to(dtype) if value.is_floating_point() and name not in interface.wide else value
            )
        with torch.inference_mode():
            outputs = self.networks[graph](*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.float().numpy() for name, output in zip(interface.outputs, outputs, strict=True)}

    def build(self, graph: str) -> nn.Module:
        """The network with its weights in memory; a large transformer's blocks stay in their files until they run."""
        weights, dtype = self.checkpoint.networks[graph], compute_dtype(self.checkpoint)
        with torch.device("meta"):
            network = build_network(graph, self.checkpoint.config).eval().requires_grad_(False)
        large = weights.parameters() * dtype.itemsize > RESIDENT_BYTES
        blocks = transformer_blocks(network) if large and graph == "transformer" else {}
        resident = [name for name in weights.shapes if not any(name.startswith(f"{b}.") for b in blocks)]
        state = {name: weights.read(name).to(dtype) for name in resident}
        network.load_state_dict(state, strict=False, assign=True)
        for name, table in constants(graph, self.checkpoint.config).items():
            setattr(network, name, table)
        for name, block in blocks.items():
            block.register_forward_pre_hook(partial(load_block, weights, name, dtype))
            block.register_forward_hook(drop_block)
        self.watch(graph, network)
        return network

    def watch(self, graph: str, network: nn.Module) -> None:
        """Adds a hook to every linear that the recipe quantizes, and to every attention if it quantizes those."""
        linears = linear_weights(graph, self.checkpoint.config)
        shapes = self.checkpoint.networks[graph].shapes
        watched = self.statistics.inputs.setdefault(graph, {})
        for path, module in network.named_modules():
            if self.recipe.attention and isinstance(module, JointAttention):
                head_dim = self.checkpoint.config.transformer.head_dim
                names = [f"{path}.{operand}" for operand in OPERANDS]
                for name in names:
                    watched.setdefault(name, InputStatistics.empty(head_dim, moments=False))
                module.register_forward_pre_hook(
                    partial(self.collect, f"{graph}: {path}", [watched[name] for name in names])
                )
            weight = f"{path}.weight"
            if weight not in linears:
                continue
            layer = self.recipe.layer_of(graph, weight, shapes[weight][::-1], True)
            if layer.format in FORMATS:
                watched.setdefault(weight, InputStatistics.empty(shapes[weight][1]))
                module.register_forward_pre_hook(
                    partial(self.collect, f"{graph}: {weight}", [watched[weight]])
                )

    def collect(
        self, name: str, statistics: Sequence[InputStatistics], _module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        """A forward hook: adds `inputs` to `statistics`, one each."""
        try:
            for each, values in zip(statistics, inputs, strict=True):
                if isinstance(self.ranges, int):
                    each.add(values, self.ranges)
                else:
                    for index in range(RANGES):
                        each.add(values[self.ranges == index], index)
        except KontextError as error:
            raise KontextError(
                f"calibration stopped at {name}: {error}; the checkpoint is damaged, or a LoRA too strong"
            ) from None


def watched_linears(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, list[str]]:
    """Network → weights of the linears that a recipe quantizes, in alphabetical order."""
    return {
        name: sorted(
            weight
            for weight in linear_weights(name, checkpoint.config)
            if recipe.layer_of(name, weight, network.shapes[weight][::-1], True).format in FORMATS
        )
        for name, network in checkpoint.networks.items()
    }


def watched_operands(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """Operands of the transformer's attentions that a recipe quantizes."""
    if not recipe.attention:
        return []
    names = attention_names(checkpoint.config.transformer)
    return [f"{name}.{operand}" for name in names for operand in OPERANDS]


def compute_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """fp32 for small models; bf16, as in the reference pipelines, for those whose fp32 weights would not fit."""
    return torch.float32 if checkpoint.parameters() < BIG_MODEL else torch.bfloat16


def transformer_blocks(network: nn.Module) -> dict[str, nn.Module]:
    return {
        f"{kind}.{index}": block
        for kind in ("double_blocks", "single_blocks")
        for index, block in enumerate(network.get_submodule(kind).children())
    }


def load_block(
    weights: NetworkWeights, name: str, dtype: torch.dtype, block: nn.Module, _inputs: Any
) -> None:
    """A forward pre-hook: reads a block's weights."""
    state = {key: weights.read(f"{name}.{key}").to(dtype) for key in block.state_dict()}
    block.load_state_dict(state, assign=True)


def drop_block(block: nn.Module, _inputs: Any, _outputs: Any) -> None:
    """A forward hook: frees a block's weights."""
    block.to_empty(device="meta")
