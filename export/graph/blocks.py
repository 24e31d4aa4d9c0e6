"""Blocks that repeat are traced once: in the network each stands for one operator, whose definition is inlined later.

FLUX has 57 blocks of 2 kinds and T5 24 of one; tracing them one by one is most of the time that an export takes.
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
"""Operator domain of the stand-ins; none is left in a finished graph."""


@dataclass(frozen=True)
class Repeated:
    """Blocks of one kind in a network.

    `inputs` are the shapes of a block's inputs, by name, as in a `Signature`; the first `outputs` of them are the
    shapes of its outputs too. `wide` inputs are fp32 whatever the network computes in.
    """

    path: str
    operator: str
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: int = 1
    wide: tuple[str, ...] = ()


def repeated_blocks(name: str, config: KontextConfig) -> list[Repeated]:
    """The repeated blocks of network `name`; the autoencoder's all differ."""
    if name == "transformer":
        hidden, half = config.transformer.hidden_size, config.transformer.head_dim // 2
        text, image = config.text_encoder_2.max_length, "target_tokens + reference_tokens"
        tokens = f"text_tokens + {image}"
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
            Repeated("double_blocks", "DoubleBlock", double, outputs=2, wide=("cos", "sin")),
            Repeated("single_blocks", "SingleBlock", single, wide=("cos", "sin")),
        ]
    if name == "text_encoder":
        clip = config.text_encoder
        hidden_states = {"x": ("batch", clip.max_length, clip.hidden_size)}
        return [Repeated("text_model.encoder.layers", "ClipLayer", hidden_states)]
    if name == "text_encoder_2":
        t5 = config.text_encoder_2
        return [
            Repeated(
                "encoder.block",
                "T5Block",
                {
                    "x": ("batch", t5.max_length, t5.hidden_size),
                    "position_bias": (1, t5.num_heads, t5.max_length, t5.max_length),
                },
            )
        ]
    return []


def block_weights(block: nn.Module) -> list[tuple[str, Tensor]]:
    """A block's weights by name, in order. T5's first block also keeps the bias table that its encoder uses."""
    named = block.named_parameters()
    return [(name, weight) for name, weight in named if not name.endswith("relative_attention_bias.weight")]


def stand_in(block: nn.Module, kind: Repeated) -> None:
    """Makes `block`, when called, one operator of its inputs and its weights."""
    names = [name for name, _ in block_weights(block)]

    def forward(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        # Asked for by name at each call: the tracer knows a module's parameters, and not a closure's tensors.
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


def define(model: ir.Model, kind: Repeated, names: Sequence[str]) -> ir.Function:
    """The operator's definition from one traced block: its inputs, then its weights in the order of `names`."""
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
    """Folding leaves its results as initializers, and a function has none."""
    for name, value in list(graph.initializers.items()):
        node = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"{name}/Constant")
        node.outputs[0].name = f"{name}_constant"
        node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
        node.outputs[0].const_value = value.const_value
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        graph.insert_before(graph[0], node)
        del graph.initializers[name]


def rename_dimensions(graph: ir.Graph, prefix: str) -> None:
    """Tracers number their dimensions: without a prefix, s40 here would pass for another trace's s40."""
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
    network: nn.Module, kinds: Sequence[Repeated], trace: Callable[[nn.Module, Repeated], ir.Model]
) -> list[ir.Function]:
    """Puts stand-ins into `network` and returns their definitions; `trace` gives the graph of one block."""
    functions = []
    for kind in kinds:
        blocks = list(network.get_submodule(kind.path).children())
        names = [name for name, _ in block_weights(blocks[0])]
        functions.append(define(trace(blocks[0], kind), kind, names))
        for block in blocks:
            stand_in(block, kind)
    return functions


def inline(model: ir.Model, functions: Sequence[ir.Function]) -> None:
    """Gives the stand-ins of `model` their definitions, for the passes to inline."""
    for function in functions:
        model.functions[function.identifier()] = function
    if functions:
        model.graph.opset_imports[DOMAIN] = 1
