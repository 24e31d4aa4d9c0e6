"""Gives every linear of a graph spare low-rank branches, whose factors are inputs of the graph: for LoRAs that are
chosen when a bundle runs.

A linear adds (x @ down) @ up^T to its output, with its rows of the inputs `lora_down` and `lora_up`
(`model.lora_slots`), both fp32 [rows, rank]. The rank is that of an edit's LoRAs together, which stand side by side,
and 0 without any.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...model.lora_slots import Slot, Slots, row_counts
from .quantized_linear import Linear, add_to

RANK = "lora_rank"
"""The dimension of both inputs that varies."""


def add_lora_inputs(model: ir.Model, slots: Slots) -> None:
    """Adds the inputs and branches to a traced graph, in which a linear is a MatMul with its weight.

    Raises:
        RuntimeError: a weight is used by more or less than one node; a bug in this program.
    """
    graph = model.graph
    down, up = (
        graph_input(graph, name, rows)
        for name, rows in zip(("lora_down", "lora_up"), row_counts(slots), strict=True)
    )
    for name, own in slots.items():
        weight = graph.initializers[name]
        users = [use.node for use in weight.uses()]
        if len(users) != 1 or users[0].op_type != "MatMul":
            raise RuntimeError(f"{name} is used by {len(users)} nodes, and a linear's weight by one MatMul")
        add_branches(Linear(graph, users[0], weight, f"{name}/lora"), down, up, own)


def graph_input(graph: ir.Graph, name: str, rows: int) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape([rows, RANK]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    return value


def add_branches(linear: Linear, down: ir.Value, up: ir.Value, slots: Sequence[Slot]) -> None:
    """Adds the branches of a linear's slots.

    They are added before the bias, which runtimes fuse with what follows. Where the graph splits the output into q, k
    and v, they are added behind the Split: a Concat of the branches would be one more pass over the output.
    """
    x = linear.node.inputs[0]
    assert x is not None
    parts = []
    for slot in slots:
        inner = linear.before("MatMul", [x, take_rows(linear, down, slot.down)])
        turned = linear.before("Transpose", [take_rows(linear, up, slot.up)], perm=[1, 0])
        parts.append(linear.before("MatMul", [inner, turned]))
    product = linear.node.outputs[0]
    bias = only_user(product, "Add")
    widths = [slot.weight.stop - slot.weight.start for slot in slots]
    outputs = (
        split_outputs(product if bias is None else bias.outputs[0], widths) if len(slots) > 1 else [product]
    )
    if outputs is None:
        outputs, parts = [product], [linear.before("Concat", parts, axis=-1)]
    for output, part in zip(outputs, parts, strict=True):
        add_to(linear, output, part)


def split_outputs(value: ir.Value, widths: Sequence[int]) -> list[ir.Value] | None:
    """What the graph splits a value's last axis into, if that is into these widths, by one Split or by several."""
    if len(widths) == 1:
        return [value]
    split = only_user(value, "Split")
    if (
        split is None
        or value.shape is None
        or split.attributes.get_int("axis", 0) not in (-1, len(value.shape) - 1)
    ):
        return None
    found: list[ir.Value] = []
    rest = list(widths)
    for output in split.outputs:
        width = None if output.shape is None else output.shape[-1]
        own: list[int] = []
        while rest and isinstance(width, int) and sum(own) < width:
            own.append(rest.pop(0))
        below = split_outputs(output, own) if own and sum(own) == width else None
        if below is None:
            return None
        found += below
    return None if rest else found


def only_user(value: ir.Value, operator: str) -> ir.Node | None:
    """The one node that uses a value, if it is an `operator`."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == operator else None


def take_rows(linear: Linear, source: ir.Value, rows: slice) -> ir.Value:
    """These rows, in what the graph computes in."""
    limits = [linear.constant(np.array([number]), f"lora/{number}") for number in (rows.start, rows.stop, 0)]
    taken = linear.before("Slice", [source, *limits])
    if linear.dtype == ir.DataType.FLOAT:
        return taken
    return linear.before("Cast", [taken], to=linear.dtype.value)
