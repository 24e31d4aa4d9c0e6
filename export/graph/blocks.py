"""Traces repeated blocks once: each becomes one operator in the network's graph, whose definition is inlined later.

FLUX has 57 blocks of 2 kinds and T5 has 24 of one kind; tracing each of them would take most of an export's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...model.config import KontextConfig
from .passes import simplify, weights_as_inputs

DOMAIN = "kontext"
"""Domain of the operators that replace blocks; a finished graph has none left."""


@dataclass(frozen=True)
class RepeatedBlock:
    """Blocks of one kind in a network.

    `path` is the submodule that holds them, `operator` the operator that replaces each. `inputs` are the shapes of a
    block's inputs by name, as in an `Interface`; the first `outputs` of them are also the shapes of its outputs. `wide`
    inputs are fp32 whatever the network computes in.
    """

    path: str
    operator: str
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: int = 1
    wide: tuple[str, ...] = ()


def repeated_blocks(
    network: str, config: KontextConfig, prompt_tokens: str | None = None
) -> list[RepeatedBlock]:
    """The kinds of repeated blocks in `network`; none in the autoencoder, whose blocks all differ. `prompt_tokens` is
    the dimension of prompts whose length varies; None: they have the config's."""
    if network == "transformer":
        hidden, half = config.transformer.hidden_size, config.transformer.head_dim // 2
        text, image = prompt_tokens or config.text_encoder_2.max_length, "target_tokens + reference_tokens"
        tokens = f"{prompt_tokens or 'text_tokens'} + {image}"
        tables: dict[str, tuple[int | str, ...]] = {"cos": (tokens, half), "sin": (tokens, half)}
        double: dict[str, tuple[int | str, ...]] = {
            "image": ("batch", image, hidden),
            "text": ("batch", text, hidden),
            **tables,
            "modulation": ("batch", 2, 6, hidden),
        }
        single: dict[str, tuple[int | str, ...]] = {
            "x": ("batch", tokens, hidden),
            **tables,
            "modulation": ("batch", 3, hidden),
        }
        return [
            RepeatedBlock("double_blocks", "DoubleBlock", double, outputs=2, wide=("cos", "sin")),
            RepeatedBlock("single_blocks", "SingleBlock", single, wide=("cos", "sin")),
        ]
    if network == "text_encoder":
        clip = config.text_encoder
        hidden_states = {"x": ("batch", prompt_tokens or clip.max_length, clip.hidden_size)}
        return [RepeatedBlock("text_model.encoder.layers", "ClipLayer", hidden_states)]
    if network == "text_encoder_2":
        t5 = config.text_encoder_2
        length = prompt_tokens or t5.max_length
        return [
            RepeatedBlock(
                "encoder.block",
                "T5Block",
                {
                    "x": ("batch", length, t5.hidden_size),
                    "position_bias": (1, t5.num_heads, length, length),
                },
            )
        ]
    return []


def block_weights(block: nn.Module) -> list[tuple[str, Tensor]]:
    """A block's weights by name, in order, without the bias table in T5's first block, which the encoder uses."""
    named = block.named_parameters()
    return [(name, weight) for name, weight in named if not name.endswith("relative_attention_bias.weight")]


def replace_by_operator(block: nn.Module, kind: RepeatedBlock) -> None:
    """Makes `block`, when called, emit one operator of its inputs and weights."""
    names = [name for name, _ in block_weights(block)]

    def forward(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        # Looked up at each call, because the tracer recognizes a module's parameters, but not a closure's tensors.
        weights = [block.get_parameter(name) for name in names]
        shaped = inputs[: kind.outputs]
        results = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{kind.operator}",
            [*inputs, *weights],
            dtypes=[value.dtype for value in shaped],
            shapes=[value.shape for value in shaped],
            version=1,
        )
        return tuple(results) if kind.outputs > 1 else results[0]

    block.forward = forward


def operator_definition(model: ir.Model, kind: RepeatedBlock, names: Sequence[str]) -> ir.Function:
    """The operator's definition, from one traced block. Its inputs are the block's, then its weights as in `names`."""
    with weights_as_inputs(model, restore=False):
        simplify(model)
    initializers_to_constants(model.graph)
    rename_dimensions(model.graph, kind.operator)
    inputs = {value.name: value for value in model.graph.inputs}
    ordered = [inputs[name] for name in (*kind.inputs, *names)]
    model.graph.inputs.clear()
    model.graph.inputs.extend(ordered)
    return ir.Function(DOMAIN, kind.operator, graph=model.graph, attributes=[])


def initializers_to_constants(graph: ir.Graph) -> None:
    """Constant folding leaves its results as initializers, which a function cannot have."""
    for name, value in list(graph.initializers.items()):
        node = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"{name}/Constant")
        node.outputs[0].name = f"{name}_constant"
        node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
        node.outputs[0].const_value = value.const_value
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        graph.insert_before(graph[0], node)
        del graph.initializers[name]


def rename_dimensions(graph: ir.Graph, prefix: str) -> None:
    """The tracer numbers dimensions in each trace: a prefix keeps this trace's s40 apart from another trace's."""
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    dimension if isinstance(dimension, int) else f"{prefix}_{dimension}"
                    for dimension in value.shape
                ]
            )


def replace_repeated(
    network: nn.Module, kinds: Sequence[RepeatedBlock], trace: Callable[[nn.Module, RepeatedBlock], ir.Model]
) -> list[ir.Function]:
    """Replaces the blocks of `network` by operators and returns their definitions; `trace` traces one block."""
    functions = []
    for kind in kinds:
        blocks = list(network.get_submodule(kind.path).children())
        names = [name for name, _ in block_weights(blocks[0])]
        functions.append(operator_definition(trace(blocks[0], kind), kind, names))
        for block in blocks:
            replace_by_operator(block, kind)
    return functions


def add_definitions(model: ir.Model, functions: Sequence[ir.Function]) -> None:
    """Adds the operators' definitions to `model`, for the passes to inline."""
    for function in functions:
        model.functions[function.identifier()] = function
    if functions:
        model.graph.opset_imports[DOMAIN] = 1
